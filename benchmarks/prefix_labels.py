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
from scipy import stats

from trimtab.params import GuidanceParams
from trimtab.sampling import RolloutSampling
from trimtab_lab.arena import workers
from trimtab_lab.arena.stats import at_kl, paired
from trimtab_lab.rollouts.journal import Journal
from trimtab_lab.rollouts.odds import cut_pairs, measure
from trimtab_lab.rollouts.prompts import RolloutPrompt
from trimtab_lab.rollouts.run import roll_out
from trimtab_lab.worlds import WORLDS, build
from trimtab_models import checkpoint, data, pretrained
from trimtab_models.drawing import SHADES, Chart
from trimtab_models.report.odds import report
from trimtab_models.rows import Rollout
from trimtab_models.scoring import prefix_scores
from trimtab_models.validation import credit

RESULTS = Path(__file__).parent / "results"
WORK = Path(__file__).parents[1] / ".work" / "prefix-labels"
SIZES = {"reviews": (70, 3), "digest": (200, 20), "sums": (150, 3)}
"""World → prompts of the measured arm, with four answers each; pairs measured at every token."""
ANSWERS, LENGTHS, TIMES, DENSE = 4, 2, 4, 8
MOST = 4000
"""Prompts to draw answers to, at most."""
PROMPTS, KL = 128, 1.0
ARMS = {
    "measured": "measured odds",
    "inherited": "inherited labels, as many tokens",
    "few": "inherited labels, the same pairs",
}
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


def points(result: dict[str, Any], arm: str, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(np.array(p["reward"]), np.array(p["kl"])) for p in result["steered"][f"{arm}-{seed}"]]


def at_the_kl(result: dict[str, Any], arm: str, seeds: Sequence[int]) -> np.ndarray:
    """Each prompt's reward at `KL` nats, the mean over seeds: [prompts]."""
    each = [at_kl(points(result, arm, seed), KL) for seed in seeds]
    return np.mean([values for values in each if values is not None], 0)


def table(all_results: dict[str, dict[str, Any]], seeds: Sequence[int], seconds: dict) -> str:
    """The results as Markdown."""
    clocks = ", ".join(f"{world} {one:.0f}" for world, one in seconds.items())
    lines = [
        "# Measured prefix labels",
        "",
        "`python benchmarks/prefix_labels.py`: Bradley-Terry on prefixes (PARGS), with labels that "
        f"prefixes inherit and with measured odds. {PROMPTS} test prompts, one answer each, at "
        f"{KL:g} nat, interpolated in √KL; mean over seeds {', '.join(map(str, seeds))} (of "
        "answers, training and steering) ± s.e. over prompts of their means over seeds. k 32, mass "
        f"0.99, tail mean. Measured pairs have {LENGTHS} drawn lengths, {TIMES} completions a "
        f"side. Seconds, on a core that others used too: {clocks}.",
        "",
        "| world | labels | generated tokens | pairs | reward at 1 nat | each seed | "
        "rank correlation with measured odds of other pairs |",
        "|---|---|---|---|---|---|---|",
    ]
    tests = [
        f"Paired by prompt, reward at {KL:g} nat, with 95 % bootstrap intervals and Wilcoxon's p "
        "(one-sided):",
        "",
        "| world | better? | than | difference | p | n |",
        "|---|---|---|---|---|---|",
    ]
    for world, result in all_results.items():
        ends = {arm: at_the_kl(result, arm, seeds) for arm in ARMS}
        start = np.mean([points(result, arm, s)[0][0] for arm in ARMS for s in seeds], 0)
        lines.append(f"| {world} | none: the base | | | {show(start)} | | |")
        for arm, name in ARMS.items():
            each = [at_kl(points(result, arm, seed), KL) for seed in seeds]
            known = [
                result["judged"][f"{arm}-{s}"]["rank correlation with measured odds"] for s in seeds
            ]
            lines.append(
                f"| {world} | *{arm}*: {name} | {np.mean(result['tokens'][arm]):,.0f} | "
                f"{np.mean(result['pairs'][arm]):,.0f} | {show(ends[arm])} | "
                f"{', '.join('–' if e is None else f'{e.mean():.3f}' for e in each)} | "
                f"{np.mean(known):.3f} ± {stats.sem(known):.3f} |"
            )
        for other in ("inherited", "few"):
            test = paired(ends["measured"], ends[other])
            reverse = paired(ends[other], ends["measured"])
            tests.append(
                f"| {world} | measured | {other} | {test.difference:+.3f} [{test.low:.3f}, "
                f"{test.high:.3f}] | {test.p:.2g} (the reverse: {reverse.p:.2g}) | {test.n} |"
            )
    lines += ["", *tests, "", "## Does a prefix inherit its answer's label?", ""]
    lines += [
        "The winner's prefix wins, by the part of the longer answer that is kept; the pairs of all "
        "seeds. 95 % intervals by the bootstrap over prompts. *Ahead*: the share of points that "
        "are measured above a half, with Wilson's interval; points at a half count half.",
        "",
        "![how often it wins, and where credit sits](prefix_labels_wins.png)",
        "",
        "| world | part | the winner's prefix wins | ahead | at a half | games that tie | points |",
        "|---|---|---|---|---|---|---|",
    ]
    for world, result in all_results.items():
        for part in result["odds"]["wins"]:
            lines.append(
                f"| {world} | {part['above']:.0%} to {part['to']:.0%} | {between(part['wins'])} | "
                f"{between(part['ahead'])} | {part['level']} | {part['ties']:.1%} | "
                f"{part['wins']['n']} |"
            )
    lines += ["", "## Where credit sits", ""]
    lines += [
        f"Every token of a few pairs measured, {DENSE} completions each, and the scorers on the "
        "same answers (mean over seeds ± s.e.). *Top tenth*: share of the absolute change of the "
        "value in the tenth of the tokens, at least one, that move it most; *replicated*: named by "
        "half of the completions, measured by the other half.",
        "",
        "| world | of | top tenth | replicated | if even | Gini | answers | tokens |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for world, result in all_results.items():
        known = result["dense"]["credit"]
        if known:
            lines.append(
                f"| {world} | the measured value | {between(known['top'])} | "
                f"{between(known['replicated'])} | {known['even']:.3f} | "
                f"{between(known['gini'])} | {known['answers']} | {known['steps']} |"
            )
        for arm, name in ARMS.items():
            each = [result["judged"][f"{arm}-{s}"]["credit"] for s in seeds]
            cells = [[one[key]["value"] for one in each] for key in ("top", "gini")]
            top, gini = (f"{np.mean(c):.3f} ± {stats.sem(c):.3f}" for c in cells)
            lines.append(f"| {world} | scorer, {name} | {top} | | | {gini} | | |")
    lines += ["", "Tokens that move the measured value most:", ""]
    for world, result in all_results.items():
        movers = ", ".join(f"{m['token']} {m['size']:.2f}" for m in result["dense"]["movers"][:8])
        lines.append(f"- {world}: {movers or 'none was seen five times'}")
    return "\n".join(lines) + "\n"


def show(values: np.ndarray) -> str:
    return f"{values.mean():.3f} ± {stats.sem(values):.3f}"


def between(one: dict[str, Any] | None) -> str:
    if one is None:
        return ""
    ends = "" if one["low"] is None else f" [{one['low']:.3f}, {one['high']:.3f}]"
    return f"{one['value']:.3f}{ends}"


def draw(all_results: dict[str, dict[str, Any]], seeds: Sequence[int]) -> None:
    """Reward over KL of each arm, and how often the winner's prefix wins."""
    chart = Chart(len(all_results), height=3.6, width=9.6)
    for panel, (world, result) in zip(chart.panels, all_results.items(), strict=True):
        for arm, shade in zip(ARMS, SHADES, strict=False):
            runs = [points(result, arm, seed) for seed in seeds]
            count = min(map(len, runs))
            kl = [np.mean([run[i][1].mean() for run in runs]) for i in range(count)]
            rewards = [np.mean([run[i][0] for run in runs], 0) for i in range(count)]
            errors = [stats.sem(one) for one in rewards]
            panel.line(arm, kl, [r.mean() for r in rewards], errors, shade=shade)
        panel.title(world)
        panel.axes.set(xlabel="KL, nats per answer", ylabel="mean reward ± s.e.")
    chart.save(RESULTS / "prefix_labels.png")
    chart = Chart(2, height=3.6, width=9.6)
    left, right = chart.panels
    left.level("says nothing", 0.5)
    right.line("all alike", [0, 90], [0, 0.9], shade=SHADES[3], marker="", linestyle=":")
    for (world, result), shade in zip(all_results.items(), SHADES, strict=False):
        parts = result["odds"]["wins"]
        middles = [50 * (part["above"] + part["to"]) for part in parts]
        left.line(world, middles, [part["wins"]["value"] for part in parts], shade=shade)
        low, high = ([part["wins"][end] for part in parts] for end in ("low", "high"))
        left.axes.fill_between(middles, low, high, color=shade, alpha=0.13, linewidth=0)
        if result["dense"]["credit"]:
            curve = [0.0, *result["dense"]["credit"]["curve"]]
            right.line(world, range(0, 91, 10), curve[:-1], shade=shade)
    left.axes.set(
        xlabel="% of the longer answer", ylabel="the winner's prefix wins", ylim=(0.4, 1.02)
    )
    right.axes.set(
        xlabel="% of the tokens, those that move most first", ylabel="share of the change"
    )
    chart.save(RESULTS / "prefix_labels_wins.png")


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
