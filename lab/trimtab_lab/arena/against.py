"""A real world's methods against the best of N answers by the reward itself, paired by prompt.

Where no optimum is known, best-of-N is the yardstick: it needs no training and no scorer of
prefixes. Its reward is exact over all subsets of N of the base's answers (`frontier.best_of`), for
N up to half of them. Its KL is its bound, log N − (N − 1)/N. Where answers tie it spends less, so
at equal KL the comparison is a little too kind to the method. Its FLOPs are N times the base's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trimtab_lab.arena.board import Board
from trimtab_lab.arena.frontier import Floats, best_of
from trimtab_lab.arena.methods import METHODS
from trimtab_lab.arena.stats import Paired, at_kl, estimate, interval_at_kl, paired


@dataclass(frozen=True)
class Against:
    """A method against best-of-N; what cannot be compared is None."""

    method: str
    reward: float | None
    """At the board's KL, read between settings; None if every setting spends more."""
    low: float | None
    high: float | None
    """Its 95 % bootstrap interval."""
    spent: float | None
    """Nats there: less than the board's KL if every setting spends less."""
    equal_kl: Paired | None
    """Its reward there minus that of best-of-N at `spent`."""
    scaled_beta: float
    """Of the setting nearest to the board's KL, and its other figures."""
    kl: float
    setting_reward: float
    n: int
    """best-of-N that costs as many FLOPs as this setting, rounded; at least 1, the base."""
    equal_flops: Paired | None
    """The setting's reward minus that of best-of-`n`."""
    worth: int | None
    """Smallest N whose best-of-N has the setting's reward; None above half of the answers."""


def best_at_kl(samples: Floats, kl: float) -> Floats | None:
    """best-of-N's reward at a KL, read between two N, [prompts]; None beyond half of the answers.

    Args:
        samples: rewards of the base, [prompts, answers].
        kl: nats.
    """
    points = [best_of(samples, n) for n in range(1, samples.shape[1] // 2 + 1)]
    if kl > points[-1][1]:
        return None
    return at_kl([(rewards, np.full_like(rewards, nats)) for rewards, nats in points], kl)


def compare(board: Board) -> list[Against]:
    """Every sampled method of a board, the best at the board's KL first."""
    rows = [
        _row(board, name)
        for name in board.methods
        if name in METHODS
        and METHODS[name].group in ("token", "search")
        and METHODS[name].top_p == 1  # else best-of-N would have to sample like it
    ]
    return sorted(rows, key=lambda row: (row.reward is None, -(row.reward or row.setting_reward)))


def _row(board: Board, name: str) -> Against:
    runs, samples = board.methods[name], board.base_samples
    run = board.nearest(runs)
    rewards, kl = run.reward(board.gold), float(run.spent.mean())
    most = samples.shape[1] // 2
    n = max(1, round(run.flops / board.base.flops))
    means = [float(best_of(samples, i)[0].mean()) for i in range(1, most + 1)]
    worth = next((i for i, mean in enumerate(means, 1) if mean >= rewards.mean()), None)
    points = board.points(name)
    known = all(np.isfinite(spent).all() for _, spent in points)
    between = METHODS[name].temperature > 0 and len(points) > 1 and known
    at = at_kl(points, board.kl) if between else None
    low = high = spent = equal = None
    if at is not None:
        low, high = interval_at_kl(points, board.kl)
        spent = min(board.kl, max(float(nats.mean()) for _, nats in points))
        best = best_at_kl(samples, spent)
        equal = None if best is None else paired(at, best, read=True)
    return Against(
        method=name,
        reward=None if at is None else float(at.mean()),
        low=low,
        high=high,
        spent=spent,
        equal_kl=equal,
        scaled_beta=run.scaled_beta,
        kl=kl,
        setting_reward=float(rewards.mean()),
        n=n,
        equal_flops=paired(rewards, best_of(samples, n)[0]) if n <= most else None,
        worth=worth,
    )


def table(board: Board, rows: Sequence[Against]) -> list[str]:
    """The comparison as lines of Markdown."""
    most = board.base_samples.shape[1] // 2
    return [
        "## Against best-of-N",
        "",
        f"best-of-N by the reward itself, N up to {most}. The first three columns are read between "
        f"settings at a KL of {board.kl:g}, or at a method's highest KL if that is smaller; a "
        "method that cuts the tail and spends more at every β has no reward there. The others are "
        "of the setting nearest to it. Differences are paired by prompt, with 95 % bootstrap "
        "intervals and p that the method is better (Student's; Wilcoxon's at equal FLOPs). "
        "*worth* is the smallest N with the setting's reward.",
        "",
        f"| method | reward at KL {board.kl:g} | KL | − best-of-N at equal KL | strength | "
        "reward | KL | − best-of-N at equal FLOPs | worth |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_line(row, most) for row in rows),
        "",
    ]


def learned(board: Board) -> list[str]:
    """What each trained scorer thinks of the answers that it guided, as lines of Markdown."""
    base: Any = board.base.facts.get("learned", {})
    lines = []
    for name, runs in board.methods.items():
        scorer = METHODS[name].scorer if name in METHODS else None
        scored = [run for run in runs if scorer in run.facts.get("learned", {})]
        if scorer is None or not scored:
            continue
        if scorer in base:
            gold = estimate(board.base.reward(board.gold))  # of the same answers
            lines.append(f"| {name} | 0 | 0 | {base[scorer]:.3f} | {gold} |")
        lines += [
            f"| {name} | {run.scaled_beta:g} | {run.spent.mean():.2f} | "
            f"{run.facts['learned'][scorer]:.3f} | {estimate(run.reward(board.gold))} |"
            for run in scored
        ]
    if not lines:
        return []
    return [
        "## Over-optimisation",
        "",
        "The learned reward is the mean score that a method's own scorer gives its whole answers. "
        f"Where it rises and {board.gold} does not, the method optimises the scorer's errors.",
        "",
        f"| method | strength | KL | learned reward | {board.gold} |",
        "|---|---|---|---|---|",
        *lines,
        "",
    ]


def _line(row: Against, most: int) -> str:
    at = "" if row.reward is None else f"{row.reward:.2f} [{row.low:.2f}, {row.high:.2f}]"
    spent = "" if row.spent is None else f"{row.spent:.2f}"
    return (
        f"| {row.method} | {at} | {spent} | {_difference(row.equal_kl)} | {row.scaled_beta:g} | "
        f"{row.setting_reward:.2f} | {row.kl:.2f} | N = {row.n}: {_difference(row.equal_flops)} | "
        f"{f'more than {most}' if row.worth is None else row.worth} |"
    )


def _difference(one: Paired | None) -> str:
    if one is None:
        return "–"
    return f"{one.difference:+.3f} [{one.low:+.3f}, {one.high:+.3f}], p = {one.p:.1e}"
