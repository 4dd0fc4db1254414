"""The table and the chart of decode.py's results."""

from pathlib import Path


def table(results: list[dict]) -> str:
    columns = {
        "requests": "requests",
        "k": "k",
        "mass": "mass",
        "scorers": "scorers",
        "unguided ms": "unguided_ms",
        "guided ms": "guided_ms",
        "guided ÷ unguided": "ratio",
        "floor ÷ unguided": "floor_ratio",
        "scoring efficiency": "efficiency",
        "naive ÷ ours": "naive_over_ours",
        "k copies ÷ ours": "copies_over_ours",
        "scorer tokens ÷ token": "scorer_tokens_per_token",
    }

    def cell(row: dict, key: str) -> str:
        value = row.get(key)
        if value is None:
            return "–"
        text = f"{value:.2f}" if isinstance(value, float) else str(value)
        low, high = row.get(f"{key}_range", (None, None))
        return text if low is None else f"{text} [{low:.2f}, {high:.2f}]"

    lines = []
    for model, title in (("random", "Random weights"), ("demo", "The demo")):
        rows = [r for r in results if r["model"] == model]
        if rows:
            kept = {c: key for c, key in columns.items() if any(key in r for r in rows)}
            lines += [f"## {title}", "", "| " + " | ".join(kept) + " |", "|---" * len(kept) + "|"]
            lines += ["| " + " | ".join(cell(r, key) for key in kept.values()) + " |" for r in rows]
            lines.append("")
    return "\n".join(lines)


def draw(results: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 3.6), sharey=True, layout="constrained")
    for axis, scorers in zip(axes, (1, 3), strict=True):
        chosen = [r for r in results if r["scorers"] == scorers]
        places = range(len(chosen))
        axis.bar(places, [r["ratio"] for r in chosen], color="#3b6ea5", label="guided")
        axis.scatter(
            places,
            [r["floor_ratio"] for r in chosen],
            color="#d1495b",
            marker="_",
            s=300,
            linewidths=2.5,
            label="floor: base + bare scorer forward",
            zorder=3,
        )
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set_xticks(places, [f"{r['requests']}×\nk={r['k']}" for r in chosen], fontsize=8)
        axis.set_title(f"{scorers} scorer{'s' if scorers > 1 else ''}", fontsize=10)
        axis.set_xlabel("concurrent requests, candidates")
    axes[0].set_ylabel("time per step ÷ unguided")
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)
