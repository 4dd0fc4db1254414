"""The plots of a report, as small PNG files."""

from collections.abc import Callable
from pathlib import Path

from trimtab_models.drawing import INK, SHADES, Chart, Panel
from trimtab_models.info import STEERS
from trimtab_models.report.validate import Report
from trimtab_models.validation import Correlation, Estimate

WIDTH, HEIGHT = 6.4, 3.4
"""Inches."""
BLUE, ORANGE, *_ = SHADES


def _errors(estimates: list[Estimate]) -> list[float]:
    return [estimate.standard_error or 0.0 for estimate in estimates]


def prefix_auc(panel: Panel, report: Report) -> None:
    """Prefix-AUC by relative position, with the minimum for steering."""
    positions = list(report.prefix_auc.positions.values())
    means = [one.mean for one in positions]
    panel.level("chance", 0.5)
    panel.level("do not steer below", STEERS)
    panel.line("prefix-AUC", range(10, 101, 10), means, _errors(positions), shade=BLUE, label=None)
    panel.axes.set(xlabel="% of the answer read", ylabel="prefix-AUC ± s.e.", ylim=(0, 1.02))


def known(panel: Panel, report: Report) -> None:
    """Correlation of score and reward by the part that has been read."""
    sides: dict[str, dict[int, Correlation | None]] = {
        "with the reward": {part.percent: part.reward for part in report.known},
        "beyond the prompt": {part.percent: part.beyond_prompt for part in report.known},
    }
    panel.axes.axhline(0, color=INK, linestyle=":", linewidth=1)
    for (name, by_part), shade in zip(sides.items(), (BLUE, ORANGE), strict=True):
        at = {percent: one for percent, one in by_part.items() if one is not None}
        panel.line(name, list(at), [one.value for one in at.values()], shade=shade)
        low, high = ([_interval(one)[side] for one in at.values()] for side in (0, 1))
        panel.axes.fill_between(list(at), low, high, color=shade, alpha=0.13, linewidth=0)
    panel.axes.set(xlabel="% of the answer read", ylabel="correlation, 95 % interval")
    panel.axes.set(ylim=(-1, 1.02))


def _interval(one: Correlation) -> tuple[float, float]:
    """The ends of the interval; the value itself where there is none."""
    if one.low is None or one.high is None:
        return one.value, one.value
    return min(one.low, one.value), max(one.high, one.value)


def reliability(panel: Panel, report: Report) -> None:
    """Mean return against the scorer's prediction, in ten bins of prefixes."""
    if report.values is None:
        return
    bins = report.values.bins
    predicted, returned = [b.predicted for b in bins], [b.returned for b in bins]
    if report.is_value:
        ideal = predicted[0], predicted[-1]
        panel.line("as predicted", ideal, ideal, shade=INK, marker="", linestyle=":")
    errors = [b.standard_error or 0.0 for b in bins]
    panel.line("returns", predicted, returned, errors, shade=BLUE, label=None)
    panel.axes.set(xlabel="score of the prefix", ylabel="mean return of its completions ± s.e.")


def length(panel: Panel, report: Report) -> None:
    """Score against length, coloured by reward."""
    points = report.points
    scatter = panel.axes.scatter(
        [p.length for p in points],
        [p.score for p in points],
        c=[p.reward for p in points],
        s=8,
        cmap="viridis",
    )
    panel.scale(scatter, "reward")
    panel.axes.set(xlabel="tokens of the answer", ylabel="score of the whole answer")


def inheritance(panel: Panel, report: Report) -> None:
    """How often continued losing prefixes win."""
    names = [f"{part.fraction:.0%}" for part in report.inheritance]
    wins = [part.wins for part in report.inheritance]
    panel.axes.bar(
        names, [w.mean for w in wins], yerr=_errors(wins), ecolor=INK, color=BLUE, width=0.5
    )
    panel.level("uninformative prefix", 1 / 3)
    panel.axes.set(xlabel="kept part of the losing answer", ylabel="wins ± s.e.", ylim=(0, None))


PLOTS: dict[str, Callable[[Panel, Report], None]] = {
    "report-prefix-auc.png": prefix_auc,
    "report-known.png": known,
    "report-length.png": length,
    "report-reliability.png": reliability,
    "report-inheritance.png": inheritance,
}


def draw(directory: Path, report: Report) -> None:
    """Write the plots that the report has numbers for, and remove old others."""
    has = {
        "report-reliability.png": report.values is not None,
        "report-inheritance.png": bool(report.inheritance),
    }
    for name, plot in PLOTS.items():
        if not has.get(name, True):
            (directory / name).unlink(missing_ok=True)
            continue
        chart = Chart(height=HEIGHT, width=WIDTH)
        plot(chart.panels[0], report)
        chart.save(directory / name)
