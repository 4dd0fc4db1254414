"""The chart of learning_curve.py's results."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot


def draw(rows: list[dict], base: list[float], own: list[float], path: Path) -> None:
    titles = {
        "reward": "reward at 1 nat",
        "foretold": "foretold gain at 1 nat",
        "auc": "prefix-AUC, held-out prompts",
    }
    figure, axes = pyplot.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    for axis, (what, title) in zip(axes, titles.items(), strict=True):
        for number, method in enumerate(dict.fromkeys(row["method"] for row in rows)):
            mine = [row for row in rows if row["method"] == method and what in row]
            if not mine:
                continue
            color, sizes = f"C{number}", [row["answers"] for row in mine]
            means, errors = zip(*(row[what] for row in mine), strict=True)
            axis.errorbar(sizes, means, errors, color=color, marker="o", markersize=4, capsize=2)
            label(axis, method, (sizes[-1], means[-1]), (6, -3), color)
        axis.set(xscale="log", xlabel="answers to train on", ylabel=title)
        ticks = sorted({row["answers"] for row in rows})
        axis.set_xlim(ticks[0] * 0.8, ticks[-1] * 2.4)
        axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks], minor=False)
        axis.minorticks_off()
        axis.spines[["top", "right"]].set_visible(False)
    for (value, _), text in ((base, "base"), (own, "VADER itself")):
        axes[0].axhline(value, color="grey", linewidth=0.7, linestyle=":")
        label(axes[0], text, (rows[0]["answers"], value), (0, 3), "grey")
    figure.savefig(path, dpi=130)


def label(axis: Any, text: str, at: tuple[float, float], away: tuple[int, int], color: str) -> None:
    axis.annotate(text, at, away, textcoords="offset points", color=color)
