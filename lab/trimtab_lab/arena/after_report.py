"""Tables of the report: what is measured after all settings, and the single rewards of a sum."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from trimtab_lab.arena.after import After
from trimtab_lab.arena.board import Board
from trimtab_lab.arena.frontier import Floats
from trimtab_lab.arena.methods import METHODS, SUMS
from trimtab_lab.arena.stats import estimate, paired

TABLES = {
    "diversity": (
        "## Diversity of ten answers",
        "1 − mean ROUGE-L F1 over all pairs of ten answers to a prompt, at the setting nearest to "
        "the comparison's KL: a higher value is more diverse.",
    ),
    "ranks": (
        "## Ranks of a good answer's tokens",
        "Mean reciprocal rank, under each method's own distribution, of the tokens of the best of "
        "16 answers of the base by gold; a token that a method never samples counts 0.",
    ),
}


def after_rows(board: Board, values: Mapping[str, Floats]) -> list[dict[str, Any]]:
    """Each method's measure, and its difference from the base's, paired by prompt."""
    rows = []
    for name, own in values.items():
        run = board.nearest(board.methods[name])
        row: dict[str, Any] = {
            "method": name,
            "strength": run.scaled_beta,
            "kl": float(run.spent.mean()),
        }
        row |= {"reward": estimate(run.reward(board.gold)), "value": estimate(own), "prompts": own}
        if name != "base" and "base" in values:
            row["minus_base"] = paired(own, values["base"])
        rows.append(row)
    return sorted(rows, key=lambda row: -row["value"].mean)


def tables(board: Board, after: After) -> list[str]:
    """What was measured after all settings, as lines of Markdown."""
    lines: list[str] = []
    for kind, (title, note) in TABLES.items():
        rows = after_rows(board, getattr(after, kind))
        if rows:
            lines += [title, "", note + " Differences are paired by prompt [95 %].", ""]
            lines += [
                f"| method | strength | KL | {board.gold} | {kind} | − base |",
                "|---" * 6 + "|",
            ]
            lines += [*map(_row, rows), ""]
    return lines


def _row(row: Mapping[str, Any]) -> str:
    less = row.get("minus_base")
    gap = "" if less is None else f"{less.difference:+.3f} [{less.low:+.3f}, {less.high:+.3f}]"
    return (
        f"| {row['method']} | {row['strength']:g} | {_nats(row['kl'])} | {row['reward']} | "
        f"{row['value']} | {gap} |"
    )


def axes(board: Board, world: str) -> list[str]:
    """The single rewards of a sum, of each method's setting nearest to the comparison's KL."""
    names: Sequence[str] = list(SUMS.get(world, ()))
    head = ["method", "strength", "KL", *names, "sum"]
    lines = [
        "## The single rewards of the sum",
        "",
        "Means ± s.e. over prompts, at the setting nearest to the comparison's KL (VAS, Figure 7).",
        "",
        "| " + " | ".join(head) + " |",
        "|---" * len(head) + "|",
    ]
    for name, runs in board.methods.items():
        if name in METHODS:
            run = board.nearest(runs)
            cells = [name, f"{run.scaled_beta:g}", _nats(float(run.spent.mean()))]
            cells += [str(estimate(run.reward(reward))) for reward in (*names, board.gold)]
            lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def _nats(kl: float) -> str:
    return f"{kl:.2f}" if math.isfinite(kl) else ""
