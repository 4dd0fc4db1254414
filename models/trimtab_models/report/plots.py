"""The plots of a report, as small PNG files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from trimtab_models.info import STEERS
from trimtab_models.report.validate import Report
from trimtab_models.validation import Correlation, Estimate

GREY = "0.6"


def _errors(estimates: list[Estimate]) -> list[float]:
    return [estimate.standard_error or 0.0 for estimate in estimates]


def prefix_auc(axes: Any, report: Report) -> None:
    """Prefix-AUC by relative position, with the minimum for steering."""
    positions = list(report.prefix_auc.positions.values())
    at = range(10, 101, 10)
    axes.axhline(0.5, color=GREY, linestyle=":", label="chance")
    axes.axhline(STEERS, color="tab:red", linestyle="--", label="do not steer below")
    axes.errorbar(at, [p.mean for p in positions], _errors(positions), marker="o", capsize=3)
    axes.set(xlabel="% of the answer read", ylabel="prefix-AUC ± s.e.", ylim=(0, 1.02))
    axes.legend(loc="lower right")


def known(axes: Any, report: Report) -> None:
    """Correlation of score and reward by the part that has been read."""
    sides: dict[str, dict[int, Correlation | None]] = {
        "with the reward": {part.percent: part.reward for part in report.known},
        "beyond the prompt": {part.percent: part.beyond_prompt for part in report.known},
    }
    axes.axhline(0, color=GREY, linestyle=":")
    for label, by_part in sides.items():
        at = {percent: one for percent, one in by_part.items() if one is not None}
        values = [one.value for one in at.values()]
        errors = [_interval(one) for one in at.values()]
        spans = [list(side) for side in zip(*errors, strict=True)] or None
        axes.errorbar(list(at), values, spans, marker="o", capsize=3, label=label)
    axes.set(xlabel="% of the answer read", ylabel="correlation, 95 % interval", ylim=(-1, 1.02))
    axes.legend(loc="lower right")


def _interval(one: Correlation) -> tuple[float, float]:
    """How far the interval reaches below and above the value."""
    if one.low is None or one.high is None:
        return 0.0, 0.0
    return max(0.0, one.value - one.low), max(0.0, one.high - one.value)


def reliability(axes: Any, report: Report) -> None:
    """Mean return against the scorer's prediction, in ten bins of prefixes."""
    if report.values is None:
        return
    bins = report.values.bins
    predicted = [b.predicted for b in bins]
    if report.is_value:
        axes.axline((predicted[0], predicted[0]), slope=1, color=GREY, linestyle=":")
    errors = [b.standard_error or 0.0 for b in bins]
    axes.errorbar(predicted, [b.returned for b in bins], errors, marker="o", capsize=3)
    axes.set(xlabel="score of the prefix", ylabel="mean return of its completions ± s.e.")


def length(axes: Any, report: Report) -> None:
    """Score against length, coloured by reward."""
    points = report.points
    scatter = axes.scatter(
        [p.length for p in points],
        [p.score for p in points],
        c=[p.reward for p in points],
        s=8,
        cmap="viridis",
    )
    axes.figure.colorbar(scatter, ax=axes, label="reward")
    axes.set(xlabel="tokens of the answer", ylabel="score of the whole answer")


def inheritance(axes: Any, report: Report) -> None:
    """How often continued losing prefixes win."""
    names = [f"{part.fraction:.0%}" for part in report.inheritance]
    wins = [part.wins for part in report.inheritance]
    axes.bar(names, [w.mean for w in wins], yerr=_errors(wins), capsize=3, width=0.5)
    axes.axhline(1 / 3, color=GREY, linestyle=":", label="uninformative prefix")
    axes.set(xlabel="kept part of the losing answer", ylabel="wins ± s.e.", ylim=(0, None))
    axes.legend()


PLOTS: dict[str, Callable[[Any, Report], None]] = {
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
        figure = Figure(figsize=(6, 3.6), dpi=90, layout="constrained")
        plot(figure.add_subplot(), report)
        figure.savefig(directory / name)
