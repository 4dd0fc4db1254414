"""The chart of learning_curve.py's results."""

from pathlib import Path

from trimtab_models.drawing import Chart

TITLES = {
    "reward": "reward at 1 nat",
    "foretold": "foretold gain at 1 nat",
    "auc": "prefix-AUC, held-out prompts",
}


def draw(rows: list[dict], base: list[float], own: list[float], path: Path) -> None:
    chart = Chart(3, height=3.2)
    ticks = sorted({row["answers"] for row in rows})
    for panel, (what, title) in zip(chart.panels, TITLES.items(), strict=True):
        for method in dict.fromkeys(row["method"] for row in rows):
            mine = [row for row in rows if row["method"] == method and what in row]
            if mine:
                means, errors = zip(*(row[what] for row in mine), strict=True)
                panel.line(method, [row["answers"] for row in mine], means, errors)
        panel.axes.set(xscale="log", xlabel="answers to train on", ylabel=f"{title} ± s.e.")
        panel.axes.set_xticks(ticks, [f"{tick / 1000:g}k" for tick in ticks])
        panel.axes.minorticks_off()
    chart.panels[0].level("base", base[0])
    chart.panels[0].level("VADER itself", own[0])
    chart.save(path)
