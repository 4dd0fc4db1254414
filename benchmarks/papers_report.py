"""The tables and the plot of papers.py that an arena's own report does not have."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trimtab_lab.arena.baselines import LAYERS, SHARES
from trimtab_lab.arena.board import Board
from trimtab_lab.arena.frontier import Floats
from trimtab_lab.arena.grades import EXACT
from trimtab_lab.arena.methods import METHODS
from trimtab_lab.arena.report import plain
from trimtab_lab.arena.runs import Run
from trimtab_lab.arena.scale import Scale
from trimtab_lab.arena.stats import at_kl, estimate, holm, paired
from trimtab_lab.arena.task import Task
from trimtab_models.drawing import SHADES, Chart
from trimtab_models.outputs import put

PAIRS = (
    ("greedy", "vas-greedy"),
    ("temperature", "vas at 0.7"),
    ("top-p", "vas at top-p 0.9"),
    ("top-k 10", "vas k=10"),
    ("rl", "vas on rl"),
    ("dpo", "vas on dpo"),
)
"""A method, and VAS on top of it."""


def write(
    task: Task,
    board: Board,
    mse: Mapping[str, float],
    graded: Mapping[str, Any],
    scale: Scale,
    judge: str,
    out: Path,
) -> None:
    """Write studies.json, studies.md and studies.png into `out`."""
    prompts, answers = task.world.rollout_factors
    total = round(scale.rollout_prompts * prompts * int(scale.completions * answers))
    studies = {
        "world": task.world.name,
        "kl": board.kl,
        "answers": total,
        "data": _sizes(board, mse, {name: share * total for name, share in SHARES.items()}, total),
        "layers": _sizes(board, mse, LAYERS, None),
        "k": _candidates(board),
        "on_top": _on_top(board),
        "two_turns": _graded(graded, judge),
    }
    stored = plain(studies)
    put(out / "studies.json", json.dumps(stored) + "\n")
    put(out / "studies.md", markdown(studies))
    draw(stored, out / "studies.png")


def _sizes(
    board: Board, mse: Mapping[str, float], sizes: Mapping[str, float], whole: float | None
) -> list[dict[str, Any]]:
    """Each size of a value: squared error, and reward at equal KL, alone and minus the whole's."""
    rows = []
    best = at_kl(board.points("vas"), board.kl) if "vas" in board.methods else None
    for name, size in (*((f"vas-{name}", size) for name, size in sizes.items()), ("vas", whole)):
        if name not in board.methods or best is None:
            continue
        reward = at_kl(board.points(name), board.kl)
        run = board.nearest(board.methods[name])
        row = {"method": name, "size": size, "mse": mse.get(METHODS[name].scorer or "")}
        row |= {"reward": estimate(reward), "flops": run.flops / board.base.flops}
        if name != "vas":
            row["minus_whole"] = paired(reward, best, read=True)
        rows.append(row)
    return rows


def _candidates(board: Board) -> list[dict[str, Any]]:
    """VAS at each k and scaled β, and minus k = 20 at the same β."""
    named = {int(name.partition("=")[2]): name for name in board.methods if "vas k=" in name}
    if "vas" in board.methods:
        named[int(METHODS["vas"].k)] = "vas"
    known = {run.scaled_beta: run for run in board.methods.get("vas", [])}
    rows = []
    for k, name in sorted(named.items()):
        for run in board.methods[name]:
            if run.scaled_beta in known and (name != "vas" or run.scaled_beta >= 2):
                ours, theirs = run.reward(board.gold), known[run.scaled_beta].reward(board.gold)
                row = {"k": k, "strength": run.scaled_beta, "reward": estimate(ours)}
                row |= {"kl": float(run.spent.mean()), "flops": run.flops / board.base.flops}
                if name != "vas":
                    row["minus_20"] = paired(ours, theirs)
                rows.append(row)
    return rows


def _on_top(board: Board) -> list[dict[str, Any]]:
    """VAS on top of each method against it, both at their best settings; Holm over all of them."""
    rows = []
    for under, over in PAIRS:
        if under in board.methods and over in board.methods:
            alone, both = (_best(board.methods[name], board.gold) for name in (under, over))
            gap = paired(both.reward(board.gold), alone.reward(board.gold))
            rows.append({"under": under, "over": over, "p": gap.p, "difference": gap})
            for side, run in (("alone", alone), ("both", both)):
                kl = float(run.spent.mean())
                rows[-1][side] = {"strength": run.scaled_beta, "kl": kl}
                rows[-1][side]["reward"] = estimate(run.reward(board.gold))
    for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = p
    return rows


def _best(runs: Sequence[Run], gold: str) -> Run:
    return max(runs, key=lambda run: float(run.reward(gold).mean()))


def _graded(graded: Mapping[str, Any], judge: str) -> dict[str, Any] | None:
    """Grades of two turns by method, and minus the base's mean grade, paired by prompt."""
    if not graded:
        return None
    base = np.mean(graded["base"], axis=0)
    rows = []
    for name, turns in graded.items():
        mean: Floats = np.mean(turns, axis=0)
        row = {"method": name, "turns": [estimate(np.array(turn)) for turn in turns]}
        row["mean"] = estimate(mean)
        if name != "base":
            row["minus_base"] = paired(mean, base)
        rows.append(row)
    return {"judge": judge, "rows": rows}


def markdown(studies: Mapping[str, Any]) -> str:
    """studies.md."""
    kl = studies["kl"]
    lines = [
        f"# {studies['world']}: studies",
        "",
        "Means ± s.e. over prompts; differences are paired by prompt [95 %]. Values are trained on "
        f"{studies['answers']:,} answers of the base, or on the first of them; rewards of VAS at "
        f"{kl:.2f} nats, read between settings.",
        "",
    ]
    for key, title, size in (
        ("data", "## Fewer answers (VAS, Table 4)", "answers"),
        ("layers", "## Smaller scorers (VAS, Figure 11)", "layers"),
    ):
        lines += [
            title,
            "",
            f"| method | {size} | squared error | reward | − `vas` | FLOPs ÷ base |",
        ]
        lines += ["|---" * 6 + "|"]
        lines += [
            f"| `{row['method']}` | {_size(row['size'])} | {_error(row['mse'])} | "
            f"{row['reward']} | {_gap(row.get('minus_whole'))} | {row['flops']:.1f} |"
            for row in studies[key]
        ]
        lines += [""]
    lines += [
        "## Candidates (VAS, Figure 12)",
        "",
        "The largest k is the whole vocabulary.",
        "",
        "| k | strength | reward | KL | − k = 20 at the same strength | FLOPs ÷ base |",
        "|---" * 6 + "|",
    ]
    lines += [
        f"| {row['k']} | {row['strength']:g} | {row['reward']} | {row['kl']:.2f} | "
        f"{_gap(row.get('minus_20'))} | {row['flops']:.1f} |"
        for row in studies["k"]
    ]
    lines += [
        "",
        "## VAS on top of other methods",
        "",
        "Both at their best settings; p: Wilcoxon, one-sided, then Holm over these rows.",
        "",
        "| method | reward | KL | with VAS | KL | difference | p | Holm |",
        "|---" * 8 + "|",
    ]
    for row in studies["on_top"]:
        alone, both = row["alone"], row["both"]
        lines.append(
            f"| `{row['under']}` | {alone['reward']} | {_nats(alone['kl'])} | {both['reward']} | "
            f"{_nats(both['kl'])} | {_gap(row['difference'])} | {row['p']:.1e} | "
            f"{row['p_holm']:.1e} |"
        )
    return "\n".join([*lines, "", *_turns(studies["two_turns"])])


def _turns(graded: Mapping[str, Any] | None) -> list[str]:
    if graded is None:
        return []
    exact = graded["judge"] == EXACT
    who = "the exact reward, 1 + 9·R: no language model" if exact else f"`{graded['judge']}`"
    lines = [
        "## Grades of two turns (VAS, section E.6)",
        "",
        f"Judge: {who}. The second request follows the method's own first answer.",
        "",
        "| method | turn 1 | turn 2 | mean | − base | p |",
        "|---" * 6 + "|",
    ]
    for row in graded["rows"]:
        gap = row.get("minus_base")
        first, second = row["turns"]
        p = "" if gap is None else f"{gap.p:.1e}"
        lines.append(
            f"| `{row['method']}` | {first} | {second} | {row['mean']} | {_gap(gap)} | {p} |"
        )
    return [*lines, ""]


def _size(size: float | None) -> str:
    return "all" if size is None else f"{size:,.0f}"


def _error(mse: float | None) -> str:
    return "" if mse is None else f"{mse:.4f}"


def _nats(kl: float) -> str:
    return f"{kl:.2f}" if np.isfinite(kl) else ""


def _gap(gap: Any) -> str:
    return "" if gap is None else f"{gap.difference:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]"


def draw(studies: Mapping[str, Any], path: Path) -> None:
    """Reward over answers, and over candidates at each strength; from a studies.json."""
    chart = Chart(2)
    data, more = chart.panels
    if rows := studies["data"]:
        sizes = [row["size"] or studies["answers"] for row in rows]
        data.line("vas", sizes, *zip(*map(_point, rows), strict=True), label="VAS")
    data.axes.set(xlabel="answers of the base", ylabel="reward at equal KL ± s.e.", xscale="log")
    strengths = sorted({row["strength"] for row in studies["k"]})
    for strength, shade in zip(strengths, SHADES, strict=False):
        rows = [row for row in studies["k"] if row["strength"] == strength]
        name = f"scaled β = {strength:g}"
        points = zip(*map(_point, rows), strict=True)
        more.line(name, [row["k"] for row in rows], *points, shade=shade)
    more.axes.set(xlabel="candidates k", ylabel="reward ± s.e.", xscale="log")
    chart.save(path)


def _point(row: Mapping[str, Any]) -> tuple[float, float]:
    return row["reward"]["mean"], row["reward"]["standard_error"] or 0.0
