"""The tables and the charts of prefix_labels.py's results."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from trimtab_lab.arena.stats import at_kl, paired
from trimtab_models.drawing import SHADES, Chart

RESULTS = Path(__file__).parent / "results"
LENGTHS, TIMES, DENSE = 2, 4, 8
PROMPTS, KL = 128, 1.0
ARMS = {
    "measured": "measured odds",
    "inherited": "inherited labels, as many tokens",
    "few": "inherited labels, the same pairs",
}


def points(result: dict[str, Any], arm: str, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(np.array(p["reward"]), np.array(p["kl"])) for p in result["steered"][f"{arm}-{seed}"]]


def at_the_kl(result: dict[str, Any], arm: str, seeds: Sequence[int]) -> np.ndarray:
    """Each prompt's reward at `KL` nats, the mean over seeds: [prompts]."""
    each = [at_kl(points(result, arm, seed), KL) for seed in seeds]
    return np.mean([values for values in each if values is not None], 0)


def table(all_results: dict[str, dict[str, Any]], seeds: Sequence[int], seconds: dict) -> str:
    """The results as Markdown."""
    clocks = ", ".join(f"{world} {one:.0f}" for world, one in seconds.items())
    lines = [
        "# Measured prefix labels",
        "",
        "`python benchmarks/prefix_labels.py`: Bradley-Terry on prefixes (PARGS), with labels that "
        f"prefixes inherit and with measured odds. {PROMPTS} test prompts, one answer each, at "
        f"{KL:g} nat, interpolated in √KL; mean over seeds {', '.join(map(str, seeds))} (of "
        "answers, training and steering) ± s.e. over prompts of their means over seeds. k 32, mass "
        f"0.99, tail mean. Measured pairs have {LENGTHS} drawn lengths, {TIMES} completions a "
        f"side. Seconds, on a core that others used too: {clocks}.",
        "",
        "| world | labels | generated tokens | pairs | reward at 1 nat | each seed | "
        "rank correlation with measured odds of other pairs |",
        "|---|---|---|---|---|---|---|",
    ]
    tests = [
        f"Paired by prompt, reward at {KL:g} nat, with 95 % bootstrap intervals and Student's p "
        "(one-sided):",
        "",
        "| world | better? | than | difference | p | n |",
        "|---|---|---|---|---|---|",
    ]
    for world, result in all_results.items():
        ends = {arm: at_the_kl(result, arm, seeds) for arm in ARMS}
        start = np.mean([points(result, arm, s)[0][0] for arm in ARMS for s in seeds], 0)
        lines.append(f"| {world} | none: the base | | | {show(start)} | | |")
        for arm, name in ARMS.items():
            each = [at_kl(points(result, arm, seed), KL) for seed in seeds]
            known = [
                result["judged"][f"{arm}-{s}"]["rank correlation with measured odds"] for s in seeds
            ]
            lines.append(
                f"| {world} | *{arm}*: {name} | {np.mean(result['tokens'][arm]):,.0f} | "
                f"{np.mean(result['pairs'][arm]):,.0f} | {show(ends[arm])} | "
                f"{', '.join('–' if e is None else f'{e.mean():.3f}' for e in each)} | "
                f"{np.mean(known):.3f} ± {stats.sem(known):.3f} |"
            )
        for other in ("inherited", "few"):
            test = paired(ends["measured"], ends[other], read=True)
            reverse = paired(ends[other], ends["measured"], read=True)
            tests.append(
                f"| {world} | measured | {other} | {test.difference:+.3f} [{test.low:.3f}, "
                f"{test.high:.3f}] | {test.p:.2g} (the reverse: {reverse.p:.2g}) | {test.n} |"
            )
    lines += ["", *tests, "", "## Does a prefix inherit its answer's label?", ""]
    lines += [
        "The winner's prefix wins, by the part of the longer answer that is kept; the pairs of all "
        "seeds. 95 % intervals by the bootstrap over prompts. *Ahead*: the share of points that "
        "are measured above a half, with Wilson's interval; points at a half count half.",
        "",
        "![how often it wins, and where credit sits](prefix_labels_wins.png)",
        "",
        "| world | part | the winner's prefix wins | ahead | at a half | games that tie | points |",
        "|---|---|---|---|---|---|---|",
    ]
    for world, result in all_results.items():
        for part in result["odds"]["wins"]:
            lines.append(
                f"| {world} | {part['above']:.0%} to {part['to']:.0%} | {between(part['wins'])} | "
                f"{between(part['ahead'])} | {part['level']} | {part['ties']:.1%} | "
                f"{part['wins']['n']} |"
            )
    lines += ["", "## Where credit sits", ""]
    lines += [
        f"Every token of a few pairs measured, {DENSE} completions each, and the scorers on the "
        "same answers (mean over seeds ± s.e.). *Top tenth*: share of the absolute change of the "
        "value in the tenth of the tokens, at least one, that move it most; *replicated*: named by "
        "half of the completions, measured by the other half.",
        "",
        "| world | of | top tenth | replicated | if even | Gini | answers | tokens |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for world, result in all_results.items():
        known = result["dense"]["credit"]
        if known:
            lines.append(
                f"| {world} | the measured value | {between(known['top'])} | "
                f"{between(known['replicated'])} | {known['even']:.3f} | "
                f"{between(known['gini'])} | {known['answers']} | {known['steps']} |"
            )
        for arm, name in ARMS.items():
            each = [result["judged"][f"{arm}-{s}"]["credit"] for s in seeds]
            cells = [[one[key]["value"] for one in each] for key in ("top", "gini")]
            top, gini = (f"{np.mean(c):.3f} ± {stats.sem(c):.3f}" for c in cells)
            lines.append(f"| {world} | scorer, {name} | {top} | | | {gini} | | |")
    lines += ["", "Tokens that move the measured value most:", ""]
    for world, result in all_results.items():
        movers = ", ".join(f"{m['token']} {m['size']:.2f}" for m in result["dense"]["movers"][:8])
        lines.append(f"- {world}: {movers or 'none was seen five times'}")
    return "\n".join(lines) + "\n"


def show(values: np.ndarray) -> str:
    return f"{values.mean():.3f} ± {stats.sem(values):.3f}"


def between(one: dict[str, Any] | None) -> str:
    if one is None:
        return ""
    ends = "" if one["low"] is None else f" [{one['low']:.3f}, {one['high']:.3f}]"
    return f"{one['value']:.3f}{ends}"


def draw(all_results: dict[str, dict[str, Any]], seeds: Sequence[int]) -> None:
    """Reward over KL of each arm, and how often the winner's prefix wins."""
    chart = Chart(len(all_results), height=3.6, width=9.6)
    for panel, (world, result) in zip(chart.panels, all_results.items(), strict=True):
        for arm, shade in zip(ARMS, SHADES, strict=False):
            runs = [points(result, arm, seed) for seed in seeds]
            count = min(map(len, runs))
            kl = [np.mean([run[i][1].mean() for run in runs]) for i in range(count)]
            rewards = [np.mean([run[i][0] for run in runs], 0) for i in range(count)]
            errors = [stats.sem(one) for one in rewards]
            panel.line(arm, kl, [r.mean() for r in rewards], errors, shade=shade)
        panel.title(world)
        panel.axes.set(xlabel="KL, nats per answer", ylabel="mean reward ± s.e.")
    chart.save(RESULTS / "prefix_labels.png")
    chart = Chart(2, height=3.6, width=9.6)
    left, right = chart.panels
    left.level("says nothing", 0.5)
    right.line("all alike", [0, 90], [0, 0.9], shade=SHADES[3], marker="", linestyle=":")
    for (world, result), shade in zip(all_results.items(), SHADES, strict=False):
        parts = result["odds"]["wins"]
        middles = [50 * (part["above"] + part["to"]) for part in parts]
        left.line(world, middles, [part["wins"]["value"] for part in parts], shade=shade)
        low, high = ([part["wins"][end] for part in parts] for end in ("low", "high"))
        left.axes.fill_between(middles, low, high, color=shade, alpha=0.13, linewidth=0)
        if result["dense"]["credit"]:
            curve = [0.0, *result["dense"]["credit"]["curve"]]
            right.line(world, range(0, 91, 10), curve[:-1], shade=shade)
    left.axes.set(
        xlabel="% of the longer answer", ylabel="the winner's prefix wins", ylim=(0.4, 1.02)
    )
    right.axes.set(
        xlabel="% of the tokens, those that move most first", ylabel="share of the change"
    )
    chart.save(RESULTS / "prefix_labels_wins.png")
