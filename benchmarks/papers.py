"""The papers' experiments on made-up worlds whose rewards can be verified.

    python benchmarks/papers.py tools [--prompts 48] [--answers 4] [--rollouts 384] [--steps 60]

Runs an arena at a small scale: greedy decoding, temperatures and top-p of the base; ARGS, PARGS,
RAD, CD, CD-Q, VAS; RL and DPO; VAS on top of each; values from fewer answers and with fewer layers;
VAS with more and fewer candidates; on *digest* the sum of three rewards, each reward alone, soups
and both points of RL on the sum. Then diversity over ten answers, ranks of the tokens of a good
answer, and on *tools* grades of two turns. Writes benchmarks/results/arena/papers-WORLD/. An
interrupted run resumes from .work/papers; --report writes the report of what has run so far.
"""

import argparse
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import papers_report
from kept import Kept

from trimtab.params import MAX_K
from trimtab_lab.arena import grades, report, values
from trimtab_lab.arena.after import measure
from trimtab_lab.arena.arena import base_samples, climb
from trimtab_lab.arena.baselines import LAYERS, SHARES
from trimtab_lab.arena.bench import Bench
from trimtab_lab.arena.board import Board
from trimtab_lab.arena.method import Method
from trimtab_lab.arena.methods import METHODS, SUMS
from trimtab_lab.arena.prepare import prepare
from trimtab_lab.arena.scale import Scale
from trimtab_lab.arena.task import load
from trimtab_lab.worlds import build
from trimtab_models import outputs, pretrained

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "arena"
WORK = ROOT / ".work" / "papers"
WORLDS = ("sums", "tools", "digest")
BASES = ("base", "greedy", "temperature", "top-p", "top-k 10")
STEERED = ("args", "args-greedy", "pargs", "rad", "cd-fudge", "cd-q", "vas", "probe")
TUNED = ("rl", "dpo")
ON_TOP = ("vas-greedy", "vas at 0.7", "vas at top-p 0.9", "vas on rl", "vas on dpo")
SIZES = tuple(f"vas-{name}" for name in (*SHARES, *LAYERS))
SUMMED = ("composition", "summed-rl-middle", "summed-rl", "rewarded-soup")
KS = (2, 5, 10, 50, 100, 200, 500, 1000, 2000)
"""Up to the largest of VAS; k = 20 is `vas` itself."""
K_SCALED_BETAS = (2.0, 4.0, 8.0)
SIZES_OF = ("prompts", "answers", "rollouts", "epochs", "steps")
"""Options that the report's command names."""
GRADED = ("base", "pargs", "vas", "dpo", "rl")
"""Methods with grades of two turns, on the world whose base knows two turns."""
TWO_TURNS = "tools"


def scale(arguments: argparse.Namespace) -> Scale:
    return Scale(
        rollout_prompts=arguments.rollouts,
        completions=8,
        guided=0,
        prompts=arguments.prompts,
        base_samples=100,
        answers=arguments.answers,
        methods=(),
        ladder=(0.5, 1.0, 2.0, 4.0, 8.0),
        references=16,
        diverse=10,
        rival_steps=arguments.steps,
        epochs=(arguments.epochs, arguments.epochs / 4),
    )


def methods(world: str, base: Path) -> list[Method]:
    """The methods of a world, and VAS with other numbers of candidates."""
    names = [*BASES, *STEERED, *SIZES, *ON_TOP[:3]]
    tuned = [*TUNED, *ON_TOP[3:]]
    if world in SUMS:
        names += [SUMMED[0], *(f"vas-{reward}" for reward in SUMS[world])]
        tuned += SUMMED[1:]
    vas = METHODS["vas"]
    grid = [
        replace(vas, name=f"vas k={k}", k=k, scaled_betas=K_SCALED_BETAS, group="grid")
        for k in candidates(base)
    ]
    first, last = ([replace(METHODS[name], times=1) for name in some] for some in (names, tuned))
    return [*first, *grid, *last]


def candidates(base: Path) -> list[int]:
    """The numbers of candidates, the whole vocabulary in place of those above it."""
    whole = min(pretrained.configuration(base).vocab_size, MAX_K)
    return sorted({min(k, whole) for k in KS} - {METHODS["vas"].k})


def run(world: str, arguments: argparse.Namespace) -> Path:
    """The arena of a world; returns its directory."""
    task, work, size = load(world), arguments.work / world, scale(arguments)
    out = outputs.claim(work, {"world": world})
    base = build.build_base(task.world, out)
    chosen = methods(world, base)
    scorers = prepare(task, out, size, {m.scorer: None for m in chosen if m.scorer})
    bench = Bench(task, str(base), scorers, size, out)
    samples = base_samples(bench, out / "base-samples.npz")
    if not arguments.report:
        tuned = [method for method in chosen if method.rival or method.over]
        climb(bench, [method for method in chosen if method not in tuned], out / "runs")
        measure(bench, report.boards_of(task, samples, out)[0][0], out)
        climb(bench, tuned, out / "runs")
    sizes = {name: getattr(arguments, name) for name in SIZES_OF}
    command = f"python benchmarks/papers.py {world}"
    command += "".join(f" --{name} {value:g}" for name, value in sizes.items())
    mse = values.errors(task.world, base, scorers, bench.texts, out / "values.json")
    boards, _ = report.boards_of(task, samples, out)
    after = measure(bench, boards[0], out, fresh=not arguments.report)
    report.write(task, bench.texts, samples, out, command, mse, after)
    graded = {}
    if world == TWO_TURNS:
        graded = two_turns(bench, boards[0], out, arguments.judge, fresh=not arguments.report)
    papers_report.write(task, boards[0], mse, graded, size, arguments.judge, out)
    return out


def two_turns(bench: Bench, board: Board, out: Path, judge: str, *, fresh: bool) -> dict[str, Any]:
    """Grades of two turns: method → turn → prompts, at the setting nearest to the board's KL.

    fresh: whether to grade what is not known.
    """
    kept = Kept(out / "grades.json")
    graded = {}
    for name in GRADED:
        if name in board.methods:
            nearest = board.nearest(board.methods[name]).scaled_beta
            label = f"{judge}: {name} @ {nearest:g}"
            if not fresh and label not in kept.known:
                continue
            graded[name] = kept(label, lambda n=name, b=nearest: _grade(bench, n, b, judge))
    return graded


def _grade(bench: Bench, name: str, scaled_beta: float, judge: str) -> list[list[float]]:
    turns = grades.converse(bench, METHODS[name], scaled_beta)
    return [grades.grades(judge, turn, bench.task.world).tolist() for turn in turns]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("world", choices=WORLDS)
    parser.add_argument("--prompts", type=int, default=48, help="test prompts")
    parser.add_argument("--answers", type=int, default=4, help="answers to each, in each setting")
    parser.add_argument("--rollouts", type=int, default=384, help="training prompts")
    parser.add_argument("--epochs", type=float, default=2, help="over answers; pairs: a quarter")
    parser.add_argument("--steps", type=int, default=60, help="of the training of a tuned policy")
    parser.add_argument("--judge", default=grades.EXACT, help="of two turns: exact, or a judge")
    parser.add_argument("--report", action="store_true", help="report what has run so far")
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    work, kept = run(arguments.world, arguments), arguments.out / f"papers-{arguments.world}"
    kept.mkdir(parents=True, exist_ok=True)
    for pattern in ("results.json", "leaderboard.md", "studies.*", "values.json", "*.png"):
        for file in work.glob(pattern):
            shutil.copy(file, kept / file.name)


if __name__ == "__main__":
    main()
