"""The plots of an arena, as small PNG files."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from trimtab_lab.arena import stats
from trimtab_lab.arena.board import Board
from trimtab_lab.arena.frontier import Floats
from trimtab_lab.arena.methods import METHODS
from trimtab_lab.arena.runs import Run

GREY = "0.6"
MARKERS = "osD^vP"
REAL_EDGE = 8.0
"""Nats at which the plot of a real world ends, whatever the frontier's limit."""
BESIDE = {"fontsize": 7, "loc": "center left", "bbox_to_anchor": (1, 0.5), "frameon": False}


def style(place: int) -> dict[str, Any]:
    """Colour and marker of the place-th method."""
    return {
        "color": f"C{place % 10}",
        "marker": MARKERS[place // 10 % len(MARKERS)],
        "markersize": 4,
    }


def _sampled(board: Board) -> dict[str, list[Run]]:
    """Listed methods whose KL is known exactly, without greedy ones."""
    return {
        name: runs
        for name, runs in board.methods.items()
        if name in METHODS
        and METHODS[name].temperature > 0
        and METHODS[name].group in ("token", "rival")
        and np.isfinite([run.spent.mean() for run in runs]).all()
    }


def frontier(axes: Any, board: Board) -> None:
    """Reward over KL: the optimum, and every method's settings."""
    curve, limit = board.curve(), board.frontier.limit
    edge = REAL_EDGE if board.real else 1.25 * limit
    reliable = curve["kl"] <= limit
    optimum = "optimum, estimated" if board.real else "exact optimum"
    axes.plot(curve["kl"][reliable], curve["reward"][reliable], "k", lw=2, label=optimum)
    axes.plot(curve["kl"][~reliable], curve["reward"][~reliable], "k:", lw=1)
    axes.axvline(limit, color=GREY, linestyle=":", label="limit of its estimate")
    oracle = [one for one in curve["best_of"] if one["kl"] <= edge]
    x, y = ([one[key] for one in oracle] for key in ("kl", "reward"))
    axes.plot(x, y, "x--", color=GREY, label="best-of-N by the reward itself")
    for place, name in enumerate(_sampled(board)):
        points = board.points(name)
        rewards, kl = ([values.mean() for values in column] for column in zip(*points, strict=True))
        order = np.argsort(kl)
        if min(kl) <= edge:  # else it is not in the picture
            axes.plot(np.array(kl)[order], np.array(rewards)[order], **style(place), label=name)
    axes.set(
        xlabel="KL to the base, nats per answer",
        ylabel=f"mean {board.gold}",
        xlim=(0, max(edge, 1e-3)),
    )
    axes.legend(**BESIDE)


def scaled_betas(axes: Any, board: Board) -> None:
    """Reward over scaled β."""
    for place, (name, runs) in enumerate(_sampled(board).items()):
        if len(runs) > 1:
            means = [run.reward(board.gold).mean() for run in runs]
            axes.plot([run.scaled_beta for run in runs], means, **style(place), label=name)
    axes.axhline(board.base_estimate.mean, color=GREY, linestyle=":", label="base")
    axes.set(xlabel="β · deviation of the scorer", ylabel=f"mean {board.gold}", xscale="log")
    axes.legend(**BESIDE)


def cost(axes: Any, board: Board) -> None:
    """Reward over computation: each method at its best setting."""
    for place, (name, runs) in enumerate(board.methods.items()):
        if name in METHODS:
            best = max(runs, key=lambda run: float(run.reward(board.gold).mean()))
            at = best.flops / board.base.flops, best.reward(board.gold).mean()
            axes.plot(*at, **style(place), linestyle="")
            axes.annotate(name, at, xytext=(4, 3), textcoords="offset points", fontsize=7)
    axes.set(
        xlabel="FLOPs per answer, over the base's",
        ylabel=f"mean {board.gold}, best setting",
        xscale="log",
    )


def heat_map(axes: Any, board: Board) -> None:
    """Reward over k × β of PARGS (its Table 13)."""
    rows = _by_k(board)
    common = sorted(
        set.intersection(*({run.scaled_beta for run in runs} for runs in rows.values()))
    )
    table = [
        [next(r for r in runs if r.scaled_beta == s).reward(board.gold).mean() for s in common]
        for runs in rows.values()
    ]
    shade(axes, np.array(table), [str(k) for k in rows], [f"{s:g}" for s in common])
    axes.set(xlabel="β · deviation of the scorer", ylabel="k")


def shade(axes: Any, table: Floats, rows: Sequence[str], columns: Sequence[str]) -> None:
    """Rewards as colours and numbers, [rows, columns]; NaN stays white."""
    image = axes.imshow(table, cmap="viridis", aspect="auto")
    middle = (np.nanmin(table) + np.nanmax(table)) / 2
    for (i, j), value in np.ndenumerate(table):
        if np.isfinite(value):
            colour = "k" if value > middle else "w"
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8, color=colour)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.figure.colorbar(image, ax=axes, label="mean reward")


def _by_k(board: Board) -> dict[int, list[Run]]:
    named = {
        int(name.partition(" k=")[2]): runs
        for name, runs in board.methods.items()
        if name.startswith("pargs k=")
    }
    if named and "pargs" in board.methods:
        named[int(METHODS["pargs"].k)] = board.methods["pargs"]
    return dict(sorted(named.items()))


def dial(axes: Any, runs: Sequence[Run]) -> None:
    """Mean words per answer ± s.e. over prompts, over scaled β."""
    runs = sorted(runs, key=lambda run: run.scaled_beta)
    words = [stats.estimate(np.asarray(run.words, dtype=float).mean(1)) for run in runs]
    errors = [one.standard_error or 0.0 for one in words]
    means = [one.mean for one in words]
    axes.errorbar([run.scaled_beta for run in runs], means, errors, marker="o", capsize=3)
    axes.set(xlabel="β · deviation of the scorer", ylabel="words per answer ± s.e.")


PLOTS: dict[str, Callable[[Any, Board], None]] = {
    "frontier": frontier,
    "strengths": scaled_betas,
    "cost": cost,
}
"""By file name."""


def draw(boards: Sequence[Board], dial_runs: Sequence[Run], out: Path) -> None:
    """Write the plots that have runs; file names of a second board end with its reward's name."""
    for board in boards:
        name = "" if board is boards[0] else f"-{board.gold}"
        for kind, plot in PLOTS.items():
            _save(out / f"{kind}{name}.png", plot, board)
    if _by_k(boards[0]):
        _save(out / "heat-map.png", heat_map, boards[0])
    if dial_runs:
        _save(out / "dial.png", dial, dial_runs)


def _save(path: Path, plot: Callable[[Any, Any], None], results: Any) -> None:
    figure = Figure(figsize=(8, 5), dpi=110, layout="constrained")
    plot(figure.add_subplot(), results)
    figure.savefig(path)
