"""Does a prefix inherit its answer's label, and do measured odds train a better PARGS?

    python benchmarks/prefix_labels.py [reviews digest sums] [--seeds 0 1 2]

On three worlds. *Measured*: pairs of the base's answers are cut at two drawn lengths, both sides
are continued four times each, and Bradley-Terry learns the odds. *Inherited*: as many generated
tokens, the completions counted, are spent on answers alone, so there are several times as many
pairs, and prefixes inherit labels. *Few*: inherited labels on the pairs that were measured, for
fewer tokens. Trainings have the same number of steps at most, and stop early by a held-out tenth of
the prompts. All steer the same test prompts and are compared at the same KL. Besides, every token
of a few pairs is measured, to see where credit sits.

Writes benchmarks/results/prefix_labels.{json,md,png} and prefix_labels_wins.png. An interrupted run
resumes from .work/prefix-labels.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from prefix_labels_report import ARMS, DENSE, KL, LENGTHS, PROMPTS, RESULTS, TIMES, draw, table
from scipy import stats

from trimtab.params import GuidanceParams
from trimtab.sampling import RolloutSampling
from trimtab_lab.arena import workers
from trimtab_lab.rollouts.journal import Journal
from trimtab_lab.rollouts.odds import cut_pairs, measure
from trimtab_lab.rollouts.prompts import RolloutPrompt
from trimtab_lab.rollouts.run import roll_out
from trimtab_lab.worlds import WORLDS, build
from trimtab_models import checkpoint, data, pretrained
from trimtab_models.report.odds import report
from trimtab_models.rows import Rollout
from trimtab_models.scoring import prefix_scores
from trimtab_models.validation import credit

WORK = Path(__file__).parents[1] / ".work" / "prefix-labels"
SIZES = {"reviews": (70, 3), "digest": (200, 20), "sums": (150, 3)}
"""World → prompts of the measured arm, with four answers each; pairs measured at every token."""
ANSWERS = 4
MOST = 4000
"""Prompts to draw answers to, at most."""
STEPS, BATCH, EVERY = 120, 16, 20
SCALED_BETAS = (1.0, 2.0, 4.0, 8.0, 16.0)
CANDIDATES: dict[str, Any] = {"k": 32, "mass": 0.99, "tail": "mean"}
ENGINE = {"dtype": "float32", "enforce_eager": True, "max_num_seqs": 128, "use_tqdm_on_load": False}


def folder(world: str) -> Path:
    return WORK / world


def base(world: str) -> Path:
    return build.build_base(WORLDS[world], folder(world))


def sampler(world: str, scorers: dict[str, str] | None = None) -> Any:
    from trimtab.adapters.vllm.offline import Sampler

    return Sampler(str(base(world)), scorers, **ENGINE)


def sample(world: str, seeds: Sequence[int]) -> None:
    """Answers, measured pairs, and as many further answers as their completions cost."""
    here, engine = folder(world), sampler(world)
    one = WORLDS[world]
    prompts, dense = SIZES[world]

    def reward(records: Any) -> list[float]:
        return [one.rewards[one.gold](r["prompt"], r["completion"]) for r in records]

    def sampling(n: int, seed: int) -> RolloutSampling:
        return RolloutSampling(n=n, temperature=1.0, max_tokens=one.max_tokens, seed=seed)

    def answers(seed: int, count: int) -> list[dict[str, Any]]:
        """All records of the first `count` prompts, in their order."""
        texts = one.prompts("train", MOST, 100 + seed)[:count]
        ids = [engine.tokenizer(text, add_special_tokens=False).input_ids for text in texts]
        path = here / f"answers-{seed}.jsonl"
        with Journal(path, {"seed": seed}, ("index", "sample")) as journal:
            wanted = [RolloutPrompt(*both) for both in zip(texts, ids, strict=True)]
            roll_out(engine, wanted, sampling(ANSWERS, seed), reward, journal)
        records = sorted(data.read(path), key=lambda r: (r["index"], r["sample"]))
        return [record for record in records if record["index"] < count]

    def odds(path: Path, source: Path, n: int, seed: int, **cuts: Any) -> None:
        pairs = cut_pairs(source, engine.tokenizer, seed=seed, **cuts)
        with Journal(path, {"seed": seed}) as journal:
            measure(engine, pairs, sampling(n, 1000 + seed), reward, journal)

    for seed in seeds:
        first = answers(seed, prompts)
        data.write(here / f"first-{seed}.jsonl", first)
        source = here / f"first-{seed}.jsonl"
        odds(here / f"odds-{seed}.jsonl", source, TIMES, seed, lengths=LENGTHS)
        if seed == seeds[0]:
            dense_cuts = {"lengths": one.max_tokens, "limit": dense}
            odds(here / "dense.jsonl", source, DENSE, seed + 50, **dense_cuts)
        budget = tokens_of(first) + completed(here / f"odds-{seed}.jsonl")
        count = prompts
        while tokens_of(more := answers(seed, count)) < budget and count < MOST:
            count = min(MOST, math.ceil(1.02 * budget / tokens_of(more) * count))
        data.write(here / f"more-{seed}.jsonl", within(more, budget))


def tokens_of(records: list[dict[str, Any]]) -> int:
    return sum(len(record["completion_token_ids"]) for record in records)


def completed(path: Path) -> int:
    return sum(record["generated_tokens"] for record in data.read(path))


def within(records: list[dict[str, Any]], budget: int) -> list[dict[str, Any]]:
    """The first records whose tokens are within the budget."""
    total = np.cumsum([len(record["completion_token_ids"]) for record in records])
    return records[: int(np.searchsorted(total, budget, side="right"))]


def training_data(world: str, arm: str, seed: int) -> Path:
    """The pairs of an arm."""
    here = folder(world)
    path = here / f"{arm}-{seed}.jsonl"
    if arm == "inherited":
        made = []
        for record in data.rankings(data.read(here / f"more-{seed}.jsonl"), 2, seed):
            better, worse = record.pop("completions_token_ids")
            texts = record.pop("completions")
            sides = {"chosen": texts[0], "rejected": texts[1]}
            made.append(
                {**record, **sides, "chosen_token_ids": better, "rejected_token_ids": worse}
            )
    else:
        lost = ("measured", "odds") if arm == "few" else ("measured",)
        made = [
            {name: value for name, value in record.items() if name not in lost}
            for record in data.read(here / f"odds-{seed}.jsonl")
        ]
    data.write(path, made)
    return path


def train(world: str, arm: str, seed: int) -> None:
    """Train a scorer as `trimtab train` does."""
    from trimtab_models.training.config import load
    from trimtab_models.training.run import run

    torch.set_num_threads(1)
    out = folder(world) / f"{arm}-{seed}"
    if out.exists():
        return
    source = training_data(world, arm, seed)
    pairs = len(data.read(source))
    fields = {
        **{"base": str(base(world)), "data": str(source), "out": str(out), "seed": seed},
        **{"validation": 0.1, "learning_rate": 1e-3, "batch_size": BATCH, "early_stopping": 4},
        **{"logging_steps": EVERY, "eval_steps": EVERY, "save_steps": EVERY},
        "epochs": STEPS * BATCH / (0.9 * pairs),
        "trainer.disable_tqdm": True,
    }
    run(
        load(None, [f"{key}={json.dumps(value)}" for key, value in fields.items()], "bradley-terry")
    )


def steer(world: str, seeds: Sequence[int]) -> None:
    """Rewards and KL of every scorer on the test prompts, up to the first β above `KL` nats."""
    here, one = folder(world), WORLDS[world]
    names = [f"{arm}-{seed}" for arm in ARMS for seed in seeds]
    missing = [name for name in names if not (here / f"{name}.steered.json").exists()]
    if not missing:
        return
    engine = sampler(world, {name: str(here / name) for name in names})
    texts = one.prompts("test", PROMPTS, 5)
    ids = [engine.tokenizer(text, add_special_tokens=False).input_ids for text in texts]

    def measured(name: str, seed: int, beta: float) -> dict[str, Any]:
        params = GuidanceParams(scorers={name: 1.0}, beta=beta, **CANDIDATES)
        groups = engine.sample(
            ids, 1, seed=seed, temperature=1.0, max_tokens=one.max_tokens, params=params
        )
        answers = [
            engine.tokenizer.decode(group[0].token_ids, skip_special_tokens=True)
            for group in groups
        ]
        rewards = map(one.rewards[one.gold], texts, answers)
        kl = [round(group[0].kl, 5) for group in groups]
        return {"beta": beta, "reward": [round(r, 5) for r in rewards], "kl": kl}

    for name in missing:
        seed, points = int(name.rpartition("-")[2]), []
        deviation = checkpoint.read_info(here / name).deviation
        for scaled in (0.0, *SCALED_BETAS):
            points.append(measured(name, seed, scaled / deviation))
            if np.mean(points[-1]["kl"]) > KL:
                break
        (here / f"{name}.steered.json").write_text(json.dumps(points))


def judged(world: str, arm: str, seed: int, seeds: Sequence[int]) -> dict[str, Any]:
    """A scorer against measurements: the odds of other pairs, and where its credit sits."""
    here = folder(world)
    tokenizer = pretrained.tokenizer(here / f"{arm}-{seed}")
    model, info = checkpoint.load(here / f"{arm}-{seed}")

    def scores(records: list[dict[str, Any]]) -> list[np.ndarray]:
        items = [
            Rollout(r["prompt_token_ids"], r[f"{side}_token_ids"], 0.0)
            for r in records
            for side in ("chosen", "rejected")
        ]
        return [s.numpy() for s in prefix_scores(model, info, items, tokenizer.pad_token_id)]

    other = seeds[(seeds.index(seed) + 1) % len(seeds)]
    records = data.read(here / f"odds-{other}.jsonl")
    sides = scores(records)
    ahead, odds = [], []
    for n, record in enumerate(records):
        for i, j, p in record["odds"][:-1]:
            ahead.append(sides[2 * n][i - 1] - sides[2 * n + 1][j - 1])
            odds.append(p)
    dense = data.read(here / "dense.jsonl")
    groups = [tuple(r["prompt_token_ids"]) for r in dense for _ in range(2)]
    moved = credit([np.diff(row) for row in scores(dense)], groups)
    return {
        "rank correlation with measured odds": float(stats.spearmanr(ahead, odds).statistic),
        "points": len(odds),
        "credit": moved and moved.model_dump(),
    }


def results(world: str, seeds: Sequence[int]) -> dict[str, Any]:
    """All figures of a world."""
    here = folder(world)
    pairs = {a: [len(data.read(here / f"{a}-{s}.jsonl")) for s in seeds] for a in ARMS}
    answers = [tokens_of(data.read(here / f"first-{s}.jsonl")) for s in seeds]
    spent = [a + completed(here / f"odds-{s}.jsonl") for a, s in zip(answers, seeds, strict=True)]
    more = [tokens_of(data.read(here / f"more-{s}.jsonl")) for s in seeds]
    tokenizer = pretrained.tokenizer(base(world))
    every = [record for s in seeds for record in data.read(here / f"odds-{s}.jsonl")]
    return {
        "tokens": {"measured": spent, "inherited": more, "few": answers},
        "pairs": pairs,
        "steered": {
            f"{arm}-{seed}": json.loads((here / f"{arm}-{seed}.steered.json").read_text())
            for arm in ARMS
            for seed in seeds
        },
        "judged": {f"{a}-{s}": judged(world, a, s, list(seeds)) for a in ARMS for s in seeds},
        "odds": report(every).model_dump(),
        "dense": report(data.read(here / "dense.jsonl"), tokenizer).model_dump(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("worlds", nargs="*", default=list(SIZES), help=f"of {', '.join(SIZES)}")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--report-only", action="store_true", help="write the results of all worlds"
    )
    arguments = parser.parse_args()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    for world in [] if arguments.report_only else arguments.worlds:
        folder(world).mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        base(world)
        with workers.pool(1) as pool:  # an engine ends with its process
            pool.submit(sample, world, arguments.seeds).result()
        for arm in ARMS:
            for seed in arguments.seeds:
                train(world, arm, seed)
        with workers.pool(1) as pool:
            pool.submit(steer, world, arguments.seeds).result()
        result = results(world, arguments.seeds) | {"seconds": time.monotonic() - start}
        (folder(world) / "results.json").write_text(json.dumps(result))
    files = {world: folder(world) / "results.json" for world in SIZES}
    known = {w: json.loads(file.read_text()) for w, file in files.items() if file.exists()}
    text = table(known, arguments.seeds, {w: one["seconds"] for w, one in known.items()})
    print(text)
    (RESULTS / "prefix_labels.json").write_text(json.dumps(known) + "\n")
    (RESULTS / "prefix_labels.md").write_text(text)
    draw(known, arguments.seeds)


if __name__ == "__main__":
    main()
