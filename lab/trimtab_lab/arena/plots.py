"""The plots of an arena, as small PNG files."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trimtab_lab.arena import stats
from trimtab_lab.arena.frontier import Floats
from trimtab_lab.arena.methods import METHODS
from trimtab_lab.arena.picture import Picture
from trimtab_lab.arena.runs import Run
from trimtab_models.drawing import INK, Chart, Panel

REAL_EDGE = 8.0
"""Nats at which the plot of a real world ends, whatever the frontier's limit."""


def frontier(panel: Panel, picture: Picture) -> None:
    """Reward over KL: the optimum, and every method's settings ± s.e. over prompts."""
    axes, limit = panel.axes, picture.limit
    edge = REAL_EDGE if picture.real else 1.25 * limit
    reliable = picture.kl <= limit
    optimum = "optimum, estimated" if picture.real else "exact optimum"
    bare: dict[str, Any] = {"marker": "", "shade": INK}
    panel.line(optimum, picture.kl, picture.reward, label=None, linestyle=":", lw=1, **bare)
    panel.line(optimum, picture.kl[reliable], picture.reward[reliable], linewidth=2.4, **bare)
    axes.axvline(limit, color=INK, linestyle=":", linewidth=1)
    x, y = ([one[key] for one in picture.best_of if one["kl"] <= edge] for key in ("kl", "reward"))
    panel.line("best-of-N by the reward itself", x, y, shade=INK, marker="x", linestyle="--")
    for name in picture.sampled():
        points = picture.points(name)
        if points[0].kl <= edge:  # else it is not in the picture
            columns = zip(*((one.kl, one.reward, one.error) for one in points), strict=True)
            panel.line(name, *columns)
    axes.set(
        xlabel="KL to the base, nats per answer",
        ylabel=f"mean {picture.gold} ± s.e.",
        xlim=(0, max(edge, 1e-3)),
    )
    panel.fit()


def wins(panel: Panel, picture: Picture) -> None:
    """Win rate against the base over KL, by the exact reward as the judge (VAS, Figure 2)."""
    edge = REAL_EDGE if picture.real else 1.25 * picture.limit
    for name in picture.sampled():
        settings = [one for one in picture.methods[name] if math.isfinite(one.win)]
        settings = sorted(settings, key=lambda one: one.kl)
        if settings and settings[0].kl <= edge and name != "base":
            columns = zip(*((one.kl, one.win, one.win_error) for one in settings), strict=True)
            panel.line(name, *columns)
    panel.level("base", 0.5)
    panel.axes.set(
        xlabel="KL to the base, nats per answer",
        ylabel=f"wins against the base by {picture.gold}, ties half, ± s.e.",
        xlim=(0, max(edge, 1e-3)),
    )
    panel.fit()


def scaled_betas(panel: Panel, picture: Picture) -> None:
    """Reward ± s.e. over scaled β."""
    for name in picture.sampled():
        settings = picture.methods[name]
        if len(settings) > 1:
            columns = zip(*((s.scaled_beta, s.reward, s.error) for s in settings), strict=True)
            panel.line(name, *columns)
    panel.level("base", picture.base)
    panel.axes.set(
        xlabel="β · deviation of the scorer", ylabel=f"mean {picture.gold} ± s.e.", xscale="log"
    )


def cost(panel: Panel, picture: Picture) -> None:
    """Reward over computation: each method at its best setting."""
    [base] = picture.methods["base"]
    for name, settings in picture.methods.items():
        if name in METHODS:
            best = max(settings, key=lambda one: one.reward)
            panel.point(name, best.flops / base.flops, best.reward, best.error)
    panel.axes.set(
        xlabel="FLOPs per answer, over the base's",
        ylabel=f"mean {picture.gold} ± s.e., best setting",
        xscale="log",
    )


def heat_map(panel: Panel, picture: Picture) -> None:
    """Reward over k × β of PARGS (its Table 13)."""
    rows = picture.by_k()
    common = sorted(
        set.intersection(*({one.scaled_beta for one in some} for some in rows.values()))
    )
    table = [
        [next(one for one in some if one.scaled_beta == beta).reward for beta in common]
        for some in rows.values()
    ]
    shade(panel, np.array(table), [str(k) for k in rows], [f"{beta:g}" for beta in common])
    panel.axes.set(xlabel="β · deviation of the scorer", ylabel="k")
    panel.title(f"mean {picture.gold}")


def shade(panel: Panel, table: Floats, rows: Sequence[str], columns: Sequence[str]) -> None:
    """Rewards as colours and numbers, [rows, columns]; NaN stays empty."""
    axes = panel.axes
    axes.imshow(table, cmap="viridis", aspect="auto")
    middle = (np.nanmin(table) + np.nanmax(table)) / 2
    for (i, j), value in np.ndenumerate(table):
        if np.isfinite(value):
            ink = "black" if value > middle else "white"
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=9, color=ink)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.grid(False)


def dial(panel: Panel, runs: Sequence[Run]) -> None:
    """Mean words per answer ± s.e. over prompts, over scaled β."""
    runs = sorted(runs, key=lambda run: run.scaled_beta)
    words = [stats.estimate(np.asarray(run.words, dtype=float).mean(1)) for run in runs]
    errors = [one.standard_error or 0.0 for one in words]
    betas, means = [run.scaled_beta for run in runs], [one.mean for one in words]
    panel.line("dial", betas, means, errors, label=None)
    panel.axes.set(xlabel="β · deviation of the scorer", ylabel="words per answer ± s.e.")


PLOTS: dict[str, Callable[[Panel, Picture], None]] = {
    "frontier": frontier,
    "strengths": scaled_betas,
    "cost": cost,
    "wins": wins,
}
"""By file name."""


def draw(pictures: Sequence[Picture], dial_runs: Sequence[Run], out: Path) -> None:
    """Write the plots that have runs; file names of a second board end with its reward's name."""
    for picture in pictures:
        name = "" if picture is pictures[0] else f"-{picture.gold}"
        known = any(math.isfinite(s.win) for some in picture.methods.values() for s in some)
        for kind, plot in PLOTS.items():
            if kind == "wins" and not (known and picture is pictures[0]):
                continue
            chart = Chart()
            plot(chart.panels[0], picture)
            chart.save(out / f"{kind}{name}.png")
    if pictures[0].by_k():
        chart = Chart(height=3)
        heat_map(chart.panels[0], pictures[0])
        chart.save(out / "heat-map.png")
    if dial_runs:
        chart = Chart(height=3)
        dial(chart.panels[0], dial_runs)
        chart.save(out / "dial.png")
