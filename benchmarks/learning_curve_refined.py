"""A refined probe for learning_curve.py: trained again, also on answers that the first one guided.

    python benchmarks/learning_curve_refined.py [--answers 1000] [--work DIR] [--rollouts FILE]

Run it after `learning_curve.py --only gains`, with the same DIR and FILE. The probe `gains` of so
many answers guides an answer to each training prompt at two strengths, of about 1 and 3 nats. A new
probe learns `gains` from the base's answers and these. `learning_curve.py --measure` then measures
it, and adds its row.
"""

import argparse
import json
from pathlib import Path

import learning_curve as curve
from tqdm import tqdm

from trimtab.params import GuidanceParams
from trimtab_lab.arena.task import load
from trimtab_models import data
from trimtab_models.features import States

STRENGTHS = (1.0, 1.7)
"""× the β that should spend `learning_curve.NATS`; KL is nearly a multiple of β²."""


def guide(name: str, work: Path, path: Path) -> None:
    """Write an answer to each training prompt, guided by a probe, at each strength."""
    beta = json.loads((work / f"{name}.json").read_text())["beta"]
    sampler, task = curve.engine({name: work / "scorers" / name})
    texts = task.world.prompts("train", 432, 0)[: -curve.HELD_OUT]
    prompts = [sampler.tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    records = []
    for turn, strength in enumerate(tqdm(STRENGTHS, desc="guided", unit="strength")):
        params = GuidanceParams(scorers={name: 1.0}, beta=strength * beta)
        groups = sampler.sample(
            prompts, 1, seed=200 + turn, temperature=1.0, max_tokens=48, params=params
        )
        for text, ids, [answer] in zip(texts, prompts, groups, strict=True):
            tokens = list(answer.token_ids)
            record = curve.labelled(text, ids, tokens, sampler.tokenizer, task)
            records.append({**record, "beta": params.beta, "kl": answer.kl})
    data.write(path, records)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--answers", type=int, default=1000)
    parser.add_argument("--work", type=Path, default=curve.WORK, help="as of learning_curve.py")
    parser.add_argument("--rollouts", type=Path, help="default: rollouts.jsonl in DIR")
    arguments = parser.parse_args()
    work, size = arguments.work, arguments.answers
    guided = work / f"guided-{size}.jsonl"
    if not guided.exists():
        guide(f"gains-{size}", work, guided)
    by_turn, held = curve.read(arguments.rollouts or work / "rollouts.jsonl")
    prompts = {tuple(item.prompt) for item in held}
    items = [item for turn in by_turn for item in turn if tuple(item.prompt) not in prompts][:size]
    more = [curve.rollout(record) for record in data.read(guided)]
    states = States(load("everyday").world.base(), progress=True)
    for part in (*by_turn, more):  # those of a turn are on the disk since the first training
        states.add(part)
    name = f"{curve.REFINED}-{size}"
    steps = curve.likely(held, states)
    fitted = curve.fit("gains", items + more, held, steps, states, work / "scorers" / name)
    row = {"method": curve.REFINED, "answers": size, **fitted}
    print(row)
    (work / f"{name}.json").write_text(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
