"""A probe of the demo's base, and the same refined on answers that it guided.

    python benchmarks/probe_refinement.py [--seeds 0 1 2]

The reward is sentiment, as in objectives.py: 8 answers of the base to each of 768 prompts train
the first probe. It guides 4 more answers to each prompt, half of them at each of two strengths, and
both kinds train the second. Each probe steers 200 test prompts, one answer each. A seed is that of
trainings, guided answers and steered answers; the base's answers are the same. Writes
benchmarks/results/probe_refinement.{json,md}. An interrupted run resumes from
.work/probe-refinement.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from trimtab.params import GuidanceParams
from trimtab_lab.arena import workers
from trimtab_lab.arena.stats import at_kl
from trimtab_models import data, demo, networks, pretrained
from trimtab_models.demo import rollouts

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
WORK = ROOT / ".work" / "probe-refinement"
REWARD = demo.rewards["sentiment"]
TRAIN_PROMPTS, COMPLETIONS, GUIDED = 768, 8, 4
PROMPTS, MAX_TOKENS, KL = 200, 96, 1.0
ENGINE = {"dtype": "float32", "enforce_eager": True, "max_num_seqs": 256}
OBJECTIVE = "gains"
SETTINGS: dict[str, dict[str, Any]] = {
    "first": {"probe.rank": 16},
    "refined": {"epochs": 6, "batch_size": 64},
}
STRENGTHS = (1.7, 2.6)
"""β of the guided answers."""
BETAS = (2.2, 2.8, 3.6)
"""β of the steered answers; a setting above `KL` is the last one."""
CANDIDATES: dict[str, dict[str, Any]] = {"default": {}, "all": {"k": "all"}}


def train(out: Path, settings: dict[str, Any]) -> float:
    """Train a probe as `trimtab train` does; returns the seconds."""
    from trimtab_models.training.config import load
    from trimtab_models.training.run import run

    fields = {"base": "demo", "out": str(out), "validation": 0.1}
    fields |= {"trainer.disable_tqdm": True, **settings}
    start = time.monotonic()
    run(load(None, [f"{key}={json.dumps(value)}" for key, value in fields.items()], OBJECTIVE))
    return time.monotonic() - start


def base_answers() -> Path:
    """The base's labelled answers to the training prompts, as in objectives.py."""
    path = WORK / "rollouts.jsonl"
    if not path.exists():
        tokenizer = pretrained.tokenizer(demo.base())
        model = networks.build("language", demo.base(), dtype=torch.float32)
        prompts = rollouts.training_prompts(tokenizer, TRAIN_PROMPTS, 0) * COMPLETIONS
        labelled = rollouts.label(rollouts.sample(model, tokenizer, prompts, 0), REWARD)
        data.write(path, (with_prefixes(record, tokenizer) for record in labelled))
    return path


def with_prefixes(record: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    """A record with the reward after each token of its answer, which gains learns from."""
    ids = record["completion_token_ids"]
    parts = (tokenizer.decode(ids[: t + 1], skip_special_tokens=True) for t in range(len(ids)))
    return {**record, "prefix_rewards": [REWARD(record["prompt"], part) for part in parts]}


class Guide:
    """An engine with one probe."""

    def __init__(self, scorer: Path) -> None:
        from trimtab.adapters.vllm.offline import Sampler

        self.sampler = Sampler(str(demo.base()), {"probe": str(scorer)}, **ENGINE)

    def answers(self, texts: list[str], n: int, seed: int, beta: float, **fields: Any) -> list:
        """Records with "reward" and "kl" of n answers to each text: [texts][n]."""
        tokenizer = self.sampler.tokenizer
        ids = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
        params = GuidanceParams(scorers={"probe": 1.0}, beta=beta, **fields)
        groups = self.sampler.sample(
            ids, n, seed=seed, temperature=1.0, max_tokens=MAX_TOKENS, params=params
        )
        records = []
        for text, prompt, group in zip(texts, ids, groups, strict=True):
            written = [tokenizer.decode(one.token_ids, skip_special_tokens=True) for one in group]
            records.append(
                [
                    {
                        "prompt": text,
                        "completion": completion,
                        "prompt_token_ids": prompt,
                        "completion_token_ids": one.token_ids,
                        "reward": REWARD(text, completion),
                        "kl": one.kl,
                    }
                    for one, completion in zip(group, written, strict=True)
                ]
            )
        return records


def guided(guide: Guide, base: Path, path: Path, seed: int) -> None:
    """Write the base's answers, and answers that the first probe guided.

    Without their strength, they teach the value of the guided model.
    """
    if path.exists():
        return
    known = data.read(base)
    texts = list(dict.fromkeys(record["prompt"] for record in known))
    for i, beta in enumerate(STRENGTHS):
        fields = {"k": 32, "mass": 0.99, "tail": "mean"}  # the arena's candidates
        n = GUIDED // len(STRENGTHS)
        groups = guide.answers(texts, n, 11 + len(STRENGTHS) * seed + i, beta, **fields)
        tokenizer = guide.sampler.tokenizer
        known += [with_prefixes(record, tokenizer) for group in groups for record in group]
    data.write(path, known)


def steer(guide: Guide, seed: int, path: Path) -> None:
    """Write rewards and KL of each setting on the test prompts."""
    if path.exists():
        return
    texts = [demo.chat(prompt) for prompt in demo.prompts("test", PROMPTS, seed=5)]

    def measured(beta: float, **fields: Any) -> dict[str, Any]:
        flat = [group[0] for group in guide.answers(texts, 1, seed, beta, **fields)]
        one = {key: [round(record[key], 5) for record in flat] for key in ("reward", "kl")}
        return {"beta": beta, **one}

    result = {"base": [measured(0.0)]}
    for label, fields in CANDIDATES.items():
        result[label] = []
        for beta in BETAS:
            result[label].append(measured(beta, **fields))
            if np.mean(result[label][-1]["kl"]) > KL:
                break
    path.write_text(json.dumps(result))


def one(name: str, seed: int, base: Path) -> None:
    """Train a probe and steer with it; the first one also guides answers for the second."""
    out, clock = WORK / f"{name}-{seed}", WORK / f"{name}-{seed}.seconds"
    answers = WORK / f"guided-{seed}.jsonl"
    if not clock.exists():
        more: dict[str, Any] = {"data": str(base), "seed": seed}
        if name == "refined":
            more |= {"data": str(answers), "scorer": str(WORK / f"first-{seed}")}
        clock.write_text(f"{train(out, {**SETTINGS[name], **more}):.1f}")
    guide = Guide(out)
    if name == "first":
        guided(guide, base, answers, seed)
    steer(guide, seed, WORK / f"{name}-{seed}.json")


def at_one_nat(result: dict[str, Any], label: str) -> np.ndarray:
    """Each prompt's reward at `KL` nats, linear in √KL between the neighbouring settings."""
    points = [
        (np.array(setting["reward"]), np.array(setting["kl"]))
        for setting in [*result["base"], *result[label]]
    ]
    values = at_kl(points, KL)
    assert values is not None
    return values


def table(seeds: list[int]) -> str:
    """The results of all seeds, as text."""
    lines = [
        f"Sentiment on the demo: {PROMPTS} test prompts, one answer each, at {KL:g} nat. Mean over "
        f"seeds {', '.join(map(str, seeds))} ± s.e. over prompts of their means over seeds. "
        f"{TRAIN_PROMPTS * COMPLETIONS:,} answers of the base, {TRAIN_PROMPTS * GUIDED:,} guided.",
        "",
        "| probe | candidates | reward | each seed | seconds of training |",
        "|---|---|---|---|---|",
    ]
    for name in SETTINGS:
        files = [WORK / f"{name}-{seed}" for seed in seeds]
        results = [json.loads(file.with_suffix(".json").read_text()) for file in files]
        seconds = np.mean([float(file.with_suffix(".seconds").read_text()) for file in files])
        for label in CANDIDATES:
            each = [at_one_nat(result, label) for result in results]
            mean = np.mean(each, 0)
            lines.append(
                f"| {name} | {label} | {mean.mean():.3f} ± {stats.sem(mean):.3f} | "
                f"{', '.join(f'{values.mean():.3f}' for values in each)} | {seconds:.0f} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments = parser.parse_args()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    WORK.mkdir(parents=True, exist_ok=True)
    base = base_answers()
    for seed in arguments.seeds:
        for name in SETTINGS:
            if not (WORK / f"{name}-{seed}.json").exists():
                with workers.pool(1) as pool:  # an engine ends with its process
                    pool.submit(one, name, seed, base).result()
    text = table(arguments.seeds)
    print(text)
    runs = {
        f"{name} {seed}": json.loads((WORK / f"{name}-{seed}.json").read_text())
        for name in SETTINGS
        for seed in arguments.seeds
    }
    (RESULTS / "probe_refinement.json").write_text(json.dumps(runs) + "\n")
    (RESULTS / "probe_refinement.md").write_text(text)


if __name__ == "__main__":
    main()
