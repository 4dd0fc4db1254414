"""Draw the plots of benchmarks/results again, from the data beside them: after a change of style.

    python benchmarks/redraw.py [steering arena/reviews ...]

Not drawn: decode.png, and arena/reviews/dial.png, whose data is not kept.
"""

import json
import sys
from pathlib import Path

import constraints
import cuda_engine
import kl_budget
import learning_curve_plot
import objectives
import papers_report
import steering

from trimtab_lab.arena import picture, plots, tiny

RESULTS = Path(__file__).parent / "results"


def draw_arena(results: dict, folder: Path) -> None:
    if "boards" in results:
        plots.draw(picture.read(results), [], folder)
    else:
        tiny.draw([tiny.Exact(**one) for one in results["leaderboard"]], folder / "frontier.png")


def draw(name: str) -> None:
    if name.startswith("arena/"):
        folder = RESULTS / name
        draw_arena(json.loads((folder / "results.json").read_text()), folder)
        if (studies := folder / "studies.json").exists():
            papers_report.draw(json.loads(studies.read_text()), folder / "studies.png")
        return
    data, path = json.loads((RESULTS / f"{name}.json").read_text()), RESULTS / f"{name}.png"
    match name:
        case "steering":
            steering.draw(data, path)
        case "objectives":
            objectives.draw(data["runs"], list(data["prefix_auc"]), path)
        case "kl_budget":
            kl_budget.draw(data["runs"], path)
        case "constraints":
            constraints.draw(data["demo"], path)
        case "cuda_engine":
            cuda_engine.draw(data, path)
        case "learning_curve":
            learning_curve_plot.draw(data["rows"], data["base"], data["function"], path)
        case _:
            raise SystemExit(f"{name} has no plot")


def main() -> None:
    arenas = [f"arena/{path.parent.name}" for path in sorted(RESULTS.glob("arena/*/results.json"))]
    ours = ["steering", "objectives", "kl_budget", "cuda_engine", "learning_curve"]
    for name in sys.argv[1:] or [*ours, *arenas]:
        draw(name)


if __name__ == "__main__":
    main()
