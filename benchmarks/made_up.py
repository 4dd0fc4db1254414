"""Probes, and the defaults of a request, on the made-up worlds of the arena.

    python benchmarks/made_up.py reviews digest tools sums [--out DIR]

Runs the arena at a small scale, with probes and with the best return distribution of each world,
which is decoded by the arena's own candidates and by the defaults of a request. Writes
benchmarks/results/arena/probes-WORLD/, with what they have at 1 and 1.5 nats in equal-kl.md. An
interrupted run resumes from .work/made-up. Takes about ten minutes a world on one core.
"""

import argparse
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from trimtab_lab.arena import report, values
from trimtab_lab.arena.arena import base_samples, climb
from trimtab_lab.arena.bench import Bench
from trimtab_lab.arena.board import Board
from trimtab_lab.arena.methods import METHODS
from trimtab_lab.arena.prepare import prepare
from trimtab_lab.arena.runs import read
from trimtab_lab.arena.scale import Scale
from trimtab_lab.arena.stats import at_kl, estimate, paired
from trimtab_lab.arena.task import Task, load
from trimtab_lab.worlds import build
from trimtab_models import outputs

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "arena"
WORK = ROOT / ".work" / "made-up"
SCALE = Scale(
    rollout_prompts=384,
    completions=8,
    guided=8,
    prompts=48,
    base_samples=100,
    answers=2,
    methods=(),
    ladder=(0.5, 1.0, 2.0, 4.0, 8.0),
    epochs=(2, 1),
)
PROBES = ("probe", "probe-distribution", "probe-refined", "probe-refined-all")
NETWORKS = {
    "reviews": ("distribution-lean", "distribution-lean-default"),
    "digest": ("q-distribution-twice", "q-distribution-twice-default"),
    "tools": ("q-distribution", "q-distribution-default"),
    "sums": ("q-distribution", "q-distribution-default"),
}
"""World → a scorer with a network of its own, decoded in two ways."""
NATS = (1.0, 1.5)


def run(world: str) -> Path:
    """The arena of a world; returns its directory."""
    names = ("base", *PROBES, *NETWORKS[world])
    # All have the same number of answers, so that prompts weigh alike in their FLOPs.
    methods = [
        replace(METHODS[name], times=2, scaled_betas=(0.0,) if name == "base" else None)
        for name in names
    ]
    task = load(world)
    out = outputs.claim(WORK / world, {"world": world})
    scorers = prepare(task, out, SCALE, {m.scorer: None for m in methods if m.scorer})
    base = build.build_base(task.world, out)
    bench = Bench(task, str(base), scorers, SCALE, out)
    samples = base_samples(bench, out / "base-samples.npz")
    climb(bench, methods, out / "runs")
    mse = values.errors(task.world, base, scorers, bench.texts, out / "values.json")
    report.write(task, bench.texts, samples, out, f"python benchmarks/made_up.py {world}", mse)
    (out / "equal-kl.md").write_text(equal_kl(task, samples, out))
    return out


def equal_kl(task: Task, samples: Mapping[str, np.ndarray], out: Path) -> str:
    """Reward, efficiency and FLOPs of all methods at a few nats, and differences between them.

    A method that spends less has its highest KL instead.
    """
    runs, name = read(out / "runs"), task.world.name
    lines = [f"# {name}: methods at equal KL", ""]
    for nats in NATS:
        board = Board(task.world.gold, samples, runs, nats)
        optimum = board.base_estimate.mean + float(board.frontier.gain(board.kl))
        known = {}
        lines += [
            f"At {board.kl:.2f} nats. The base: {board.base_estimate}; the optimum: {optimum:.3f}.",
            "",
            "| method | reward | KL | efficiency [95 %] | FLOPs ÷ base |",
            "|---|---|---|---|---|",
        ]
        for method in (*NETWORKS[name], *PROBES):
            points = board.points(method)
            known[method] = rewards = at_kl(points, board.kl)
            spent = min(board.kl, max(float(kl.mean()) for _, kl in points))
            share = board.frontier.efficiency(rewards, np.full_like(rewards, spent))
            flops = board.nearest(board.methods[method]).flops / board.base.flops
            cells = [f"`{method}`", str(estimate(rewards)), f"{spent:.2f}", str(share or "")]
            lines.append("| " + " | ".join([*cells, f"{flops:.2f}"]) + " |")
        lines += ["", "Differences, paired by prompt, [95 %]:", ""]
        own, default = NETWORKS[name]
        pairs = [(default, own), *zip(PROBES[2:], PROBES[1:], strict=False), (PROBES[2], PROBES[0])]
        for better, worse in pairs:
            d = paired(known[better], known[worse], read=True)
            lines.append(
                f"- `{better}` − `{worse}`: {d.difference:+.3f} [{d.low:+.3f}, {d.high:+.3f}]"
            )
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("worlds", nargs="+", choices=NETWORKS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    for world in arguments.worlds:
        work, kept = run(world), arguments.out / f"probes-{world}"
        kept.mkdir(parents=True, exist_ok=True)
        for pattern in ("results.json", "leaderboard.md", "equal-kl.md", "values.json", "*.png"):
            for file in work.glob(pattern):
                shutil.copy(file, kept / file.name)


if __name__ == "__main__":
    main()
