"""What measured pairs say: whether prefixes inherit labels, and where credit sits.

python -m trimtab_models.report.odds FILE --out DIR [--base BASE]

FILE is of `trimtab rollout --complete … --odds`. Writes report.md, report.json and plots into DIR.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trimtab_models import bases, data, outputs, pretrained
from trimtab_models.data.faults import word
from trimtab_models.drawing import INK, SHADES, Chart
from trimtab_models.validation import Compared, Credit, Games, PrefixWins, credit, prefix_wins
from trimtab_models.validation.credit import TENTHS
from trimtab_models.validation.estimates import Figures, Floats

WIDTH, HEIGHT = 6.4, 3.4
BLUE, ORANGE, *_ = SHADES
ENOUGH = 5.0
"""Mean steps of an answer from which the one that moves most says something."""
LISTED, SEEN = 10, 5
"""Tokens in the table, and how often each must have been seen."""


class Mover(Figures):
    """A token, how often it was a step, and the mean of |ΔV| and of ΔV at it."""

    token: str
    n: int
    size: float
    change: float


class OddsReport(Figures):
    """The numbers of a file of measured pairs.

    ties: pairs whose answers have equal rewards, which have no winner.
    credit: None where answers have too few measured steps.
    step: mean tokens from one measured length to the next.
    movers: tokens that move the value most, if the base's tokenizer is known.
    """

    pairs: int
    prompts: int
    ties: int
    completions: int
    wins: list[PrefixWins]
    credit: Credit | None
    step: float
    movers: list[Mover]


class Side(NamedTuple):
    """One side of a pair: the tokens at the end of each step, and ΔV, by all completions and by
    each half of them."""

    prompt: Hashable
    tokens: list[int]
    lengths: list[int]
    moves: Floats
    halves: tuple[Floats, Floats] | None


def report(records: Sequence[Mapping[str, Any]], tokenizer: Any = None) -> OddsReport:
    """The numbers of measured pairs.

    Raises:
        ValueError: a record is not one of `trimtab rollout --odds`.
    """
    compared: list[Compared] = []
    sides: list[Side] = []
    for number, record in enumerate(records, 1):
        try:
            compared += _points(record)
            sides += [one for n in range(2) if (one := _side(record, n)) is not None]
        except (LookupError, TypeError, ValueError):
            raise ValueError(
                f"record {number} is not a measured pair; expected those that `trimtab rollout "
                "--complete FILE --odds` writes."
            ) from None
    if not records:
        raise ValueError("there is no measured pair to report on.")
    groups = [side.prompt for side in sides]
    moved = None
    if sides and np.mean([len(side.moves) for side in sides]) >= ENOUGH:
        halves = [side.halves for side in sides if side.halves is not None]
        all_halved = len(halves) == len(sides)
        both = ([a for a, _ in halves], [b for _, b in halves]) if all_halved else None
        moved = credit([side.moves for side in sides], groups, both)
    steps = [step for side in sides for step in np.diff(side.lengths)]
    return OddsReport(
        pairs=len(records),
        prompts=len({tuple(record["prompt_token_ids"]) for record in records}),
        ties=sum(record["score_chosen"] == record["score_rejected"] for record in records),
        completions=max(len(side) for r in records for m in r["measured"] for side in m["returns"]),
        wins=prefix_wins(compared),
        credit=moved,
        step=float(np.mean(steps)) if steps else 0.0,
        movers=[] if tokenizer is None else _movers(sides, tokenizer),
    )


def _points(record: Mapping[str, Any]) -> list[Compared]:
    rewards = float(record["score_chosen"]), float(record["score_rejected"])
    prompt = tuple(record["prompt_token_ids"])
    return [
        Compared(prompt, one["share"], Games(one["wins"], one["ties"], one["losses"]), rewards)
        for one in record["measured"]
    ]


def _side(record: Mapping[str, Any], side: int) -> Side | None:
    """The values along one answer: at each measured length, and its reward at the end."""
    name = ("chosen", "rejected")[side]
    ids, end = record[f"{name}_token_ids"], float(record[f"score_{name}"])
    known = [
        (point[side], one["returns"][side])
        for point, one in zip(record["odds"], record["measured"], strict=False)
        if point[side] < len(ids)
    ]
    if not known:
        return None
    lengths = [*(length for length, _ in known), len(ids)]

    def moves(start: int, every: int) -> Floats:
        values = [float(np.mean(returns[start::every])) for _, returns in known]
        return np.diff([*values, end])

    several = min(len(returns) for _, returns in known) > 1
    halves = (moves(0, 2), moves(1, 2)) if several else None
    prompt = tuple(record["prompt_token_ids"])
    return Side(prompt, [ids[n - 1] for n in lengths[1:]], lengths, moves(0, 1), halves)


def _movers(sides: Sequence[Side], tokenizer: Any) -> list[Mover]:
    """The tokens with the largest mean |ΔV|, among steps of a single token."""
    changes: dict[int, list[float]] = defaultdict(list)
    for side in sides:
        for token, step, change in zip(side.tokens, np.diff(side.lengths), side.moves, strict=True):
            if step == 1:
                changes[token].append(float(change))
    often = {token: moves for token, moves in changes.items() if len(moves) >= SEEN}
    movers = [
        Mover(
            token=word(repr(tokenizer.decode([token]))),
            n=len(moves),
            size=float(np.abs(moves).mean()),
            change=float(np.mean(moves)),
        )
        for token, moves in often.items()
    ]
    return sorted(movers, key=lambda one: -one.size)[:LISTED]


def markdown(one: OddsReport) -> str:
    """The whole of report.md."""
    rows = "\n".join(
        f"| {part.above:.0%} to {part.to:.0%} | {part.wins} | {part.ahead} | {part.level} | "
        f"{part.ties:.1%} | {part.wins.n} |"
        for part in one.wins
    )
    head = (
        f"# Measured prefix labels\n\n{one.pairs} pairs of answers to {one.prompts} prompts, both "
        f"sides continued {one.completions} times by the base at each measured length. {one.ties} "
        "pairs have equal rewards, hence no winner; they are left out of the first table.\n\n"
        "## Does a prefix inherit its answer's label?\n\n"
        "How often the winner's prefix wins: the probability that a continuation of the better "
        "answer's beginning gets a higher reward than one of the worse answer's, ties counted "
        "half. Training on inherited labels assumes 1; a beginning that says nothing has 0.5. "
        "*Ahead* is the share of points where that probability, as measured, is above a half; "
        "points at a half count half. Few completions draw it towards 0.5. Intervals are of 95 %: "
        "by the bootstrap over prompts, and Wilson's.\n\n![how often it wins](report-odds.png)"
        "\n\n| part of the longer answer | the winner's prefix wins | ahead | points at a half | "
        f"single comparisons that tie | points |\n|---|---|---|---|---|---|\n{rows}\n"
    )
    return "\n".join([head, _credit(one)])


def _credit(one: OddsReport) -> str:
    title = "## Where credit sits\n\n"
    if one.credit is None:
        return (
            f"{title}Not measured: it needs {ENOUGH:g} measured lengths an answer or more. "
            "`--lengths 1000` measures every token.\n"
        )
    known = one.credit
    rows = [
        f"| share of the change in the tenth of the steps that move most | {known.top} |",
        f"| the same, if all steps moved alike | {known.even:.3f} |",
        f"| Gini's coefficient | {known.gini} |",
    ]
    if known.replicated is not None:
        words = "the same, named by half of the completions and measured by the other"
        rows.insert(1, f"| {words} | {known.replicated} |")
    text = (
        f"{title}How much the value of a prefix changes from one measured length to the next (on "
        f"average {one.step:.1f} tokens), over {known.answers} answers with {known.steps} steps; "
        f"{known.still} answers whose value never moves are left out. A tenth is at least one "
        "step. The noise of few completions moves every step a little, so the first figure is too "
        "even; in the second, small moves cancel, so it is too sparse.\n\n"
        "![where credit sits](report-credit.png)\n\n"
        "| | |\n|---|---|\n" + "\n".join(rows) + "\n"
    )
    if one.movers:
        text += "\n| token | times | mean change, absolute | mean change |\n|---|---|---|---|\n"
        text += "\n".join(
            f"| `{m.token}` | {m.n} | {m.size:.3f} | {m.change:+.3f} |" for m in one.movers
        )
        text += "\n"
    return text


def draw_wins(one: OddsReport, path: Path) -> None:
    """Plot how often the winner's prefix wins by length."""
    chart = Chart(height=HEIGHT, width=WIDTH)
    panel = chart.panels[0]
    panel.level("inherited", 1.0)
    panel.level("says nothing", 0.5)
    middles = [50 * (part.above + part.to) for part in one.wins]
    wins = [part.wins for part in one.wins]
    panel.line("the winner's prefix wins", middles, [w.value for w in wins], shade=BLUE, label=None)
    ends = [
        (w.value if w.low is None else w.low, w.value if w.high is None else w.high) for w in wins
    ]
    panel.axes.fill_between(middles, *zip(*ends, strict=True), color=BLUE, alpha=0.13, linewidth=0)
    panel.axes.set(xlabel="% of the longer answer", ylabel="P, 95 % interval", ylim=(0, 1.05))
    chart.save(path)


def draw_credit(one: OddsReport, path: Path) -> None:
    """Plot the share of the change in the steps that move most."""
    if one.credit is None:
        path.unlink(missing_ok=True)
        return
    chart = Chart(height=HEIGHT, width=WIDTH)
    panel = chart.panels[0]
    shares = [0.0, *(100 * TENTHS)]
    panel.line("all alike", [0, 100], [0, 1], shade=INK, marker="", linestyle=":")
    panel.line("measured", shares, [0.0, *one.credit.curve], shade=ORANGE)
    panel.axes.set(
        xlabel="% of the steps, those that move most first", ylabel="share of the change"
    )
    chart.save(path)


PLOTS: dict[str, Callable[[OddsReport, Path], None]] = {
    "report-odds.png": draw_wins,
    "report-credit.png": draw_credit,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m trimtab_models.report.odds",
        description="Report on pairs whose prefixes were measured.",
    )
    parser.add_argument("file", help="of trimtab rollout --complete FILE --odds")
    parser.add_argument("--out", type=Path, required=True, help="directory of the report")
    parser.add_argument("--base", help="names the tokens: a directory, hub name, demo or smollm2")
    options = parser.parse_args(arguments)
    try:
        tokenizer = pretrained.tokenizer(bases.base_path(options.base)) if options.base else None
        result = report(data.read(options.file), tokenizer)
        out = outputs.claim(options.out, {"report": "odds"})
        text = markdown(result)
        outputs.put(out / "report.md", text)
        outputs.put(out / "report.json", result.model_dump_json(indent=1) + "\n")
        for name, plot in PLOTS.items():
            plot(result, out / name)
    except (OSError, ValueError) as error:
        sys.exit(f"trimtab: {error}")
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
