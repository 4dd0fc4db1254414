"""Weights from comparisons: do the intervals hold, how many comparisons it takes, what to ask.

    python benchmarks/taste.py

1. Made-up users from the prior, three scorers: how often a planted weight is in its interval.
2. Three users of the demo's three scorers, who compare two reviews of each prompt; each compares
   30 pairs, `REPEATS` times anew. Their weights are not from the prior.
3. The same users, asked the pair of largest expected gain among 120, or pairs in random order.

Writes benchmarks/results/taste.{json,md,png}.
"""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from tqdm import tqdm
from transformers import AutoTokenizer

from trimtab import Guidance
from trimtab.taste import gain, posterior
from trimtab_models import demo
from trimtab_models.demo.world import kind_in, review
from trimtab_models.drawing import Chart
from trimtab_models.drawing.palette import SHADES

RESULTS = Path(__file__).parent / "results"
SCORERS = list(demo.scorers())
USERS = {
    "warm and brief": (2.0, 0.0, 1.0),
    "stiff": (0.5, 2.0, -0.5),
    "a grumbler": (-2.0, -1.0, 0.0),
}
"""Weights of sentiment, formality and brevity, by how much answers to one prompt differ."""
LEVELS = (0.5, 0.9)
SIZES = (5, 10, 30, 100)
MADE_UP = 300
PAIRS, COMPARISONS, REPEATS = 120, 30, 100
ANEW, SHOWN = 25, (5, 10, 20, 30)
"""Repeats of the third part, and the numbers of comparisons in its table."""
DRAWS = 4096


def choices(rng: np.random.Generator, weights: Any, x: np.ndarray, nu: float = 0.0) -> list[int]:
    """Outcomes of comparisons by Davidson's model."""
    d = x @ np.asarray(weights) / 2
    odds = np.stack((np.exp(d), np.exp(-d), np.full(len(d), nu)), axis=1)
    odds /= odds.sum(1, keepdims=True)
    return [int(rng.choice(3, p=row)) for row in odds]


def inside(fitted: posterior.Posterior, weights: Any, level: float) -> np.ndarray:
    """Whether each weight is in its interval, [scorers]."""
    low, high = fitted.interval(level)[: fitted.dimensions].T
    return (low <= weights) & (weights <= high)


def share(values: list[Any]) -> dict[str, Any]:
    """Mean ± standard error over independent users."""
    each = np.array([np.mean(one) for one in values])
    return {"mean": float(each.mean()), "error": float(stats.sem(each)), "n": len(each)}


def made_up() -> dict[str, Any]:
    """The first part: level → number of comparisons → share."""
    rng = np.random.default_rng(0)
    covered: dict[str, Any] = {}
    for ties in (False, True):
        for n in tqdm(SIZES, desc=f"made-up users, ties {ties}"):
            hits: dict[float, list[Any]] = {level: [] for level in LEVELS}
            for seed in range(MADE_UP):
                weights = rng.normal(0, posterior.PRIOR, 3)
                nu = float(np.exp(rng.normal(0, posterior.TIE_PRIOR))) if ties else 0.0
                x = rng.normal(size=(n, 3))
                fitted = posterior.fit(x, choices(rng, weights, x, nu), draws=DRAWS, seed=seed)
                for level in LEVELS:
                    hits[level].append(inside(fitted, weights, level))
            for level in LEVELS:
                covered[f"{n} {'ties' if ties else 'no ties'} {level}"] = share(hits[level])
    return covered


def differences() -> np.ndarray:
    """Scores of two reviews of each prompt, subtracted, in units of their deviation."""
    guidance = Guidance(demo.scorers(), AutoTokenizer.from_pretrained(demo.base()))
    draw = random.Random(0)
    rows = []
    for prompt in tqdm(demo.prompts("test", PAIRS), desc="scores"):
        answers = [review(kind_in(prompt), draw) for _ in range(2)]
        first, second = guidance.score_answers([{"role": "user", "content": prompt}], answers)
        rows.append([first[name] - second[name] for name in SCORERS])
    x = np.array(rows)
    return x / np.sqrt((x**2).mean(0) / 2)


def users(x: np.ndarray) -> dict[str, Any]:
    """The second part, by user."""
    results = {}
    own, new = x[:COMPARISONS], x[COMPARISONS:]
    for number, (name, weights) in enumerate(USERS.items()):
        rng = np.random.default_rng(number)
        hits, widths, decided, agree = [], [], [], []
        for seed in tqdm(range(REPEATS), desc=name):
            fitted = posterior.fit(own, choices(rng, weights, own), seed=seed)
            low, high = fitted.interval(0.9).T
            hits.append(inside(fitted, np.array(weights), 0.9))
            widths.append(high - low)
            decided.append(((low > 0) | (high < 0))[np.array(weights) != 0])
            agree.append(np.sign(new @ fitted.mean) == np.sign(new @ np.array(weights)))
        parts = {"covered": hits, "width": widths, "decided": decided, "agreement": agree}
        results[name] = {part: share(values) for part, values in parts.items()}
    return results


def questions(x: np.ndarray) -> dict[str, Any]:
    """The third part: error of the weights after each comparison, [repeats][comparisons]."""
    errors: dict[str, list[list[float]]] = {"largest gain": [], "random pair": []}
    for way, lines in errors.items():
        for number, weights in enumerate(USERS.values()):
            for seed in tqdm(range(ANEW), desc=f"{way}, user {number}"):
                rng = np.random.default_rng([number, seed])
                outcomes = choices(rng, weights, x)  # of every pair, the same for both ways
                order = list(rng.permutation(len(x)))
                known, line = list[int](), list[float]()
                fitted = None
                for step in range(max(SHOWN)):
                    if way == "random pair" or fitted is None:
                        known.append(order[step])
                    else:
                        left = [i for i in order if i not in known]
                        known.append(left[int(gain.expected_gain(fitted, x[left])[0].argmax())])
                    seen = [outcomes[i] for i in known]
                    fitted = posterior.fit(x[known], seen, draws=DRAWS, seed=step)
                    off = fitted.mean - np.array(weights)
                    line.append(float(np.sqrt((off**2).mean())))
                lines.append(line)
    return errors


def table(results: dict[str, Any]) -> str:
    """The results as text."""
    lines = [
        "# Weights from comparisons",
        "",
        f"Shares of planted weights in their intervals, {MADE_UP} users from the prior (three "
        "scorers), ± s.e. over users, seed 0:",
        "",
        "| comparisons | " + " | ".join(f"{lv:.0%}, {t}" for t in TIES for lv in LEVELS) + " |",
        "|---|---|---|---|---|",
    ]
    for n in SIZES:
        cells = [results["made up"][f"{n} {t} {lv}"] for t in TIES for lv in LEVELS]
        lines.append(f"| {n} | " + " | ".join(map(shown, cells)) + " |")
    lines += [
        "",
        f"Three users of the demo's scorers, {COMPARISONS} comparisons of two reviews each, "
        f"{REPEATS} times anew (seeds 0 to {REPEATS - 1}), 90 % intervals. *Decided*: intervals "
        "without 0, of the weights that are not 0. *Agreement*: on which of two new reviews is "
        f"better, {PAIRS - COMPARISONS} pairs.",
        "",
        f"| user ({', '.join(SCORERS)}) | covered | width | decided | agreement |",
        "|---|---|---|---|---|",
    ]
    for name, weights in USERS.items():
        one = results["users"][name]
        parts = [shown(one[part]) for part in ("covered", "width", "decided", "agreement")]
        lines.append(f"| {name} ({', '.join(f'{w:g}' for w in weights)}) | {' | '.join(parts)} |")
    ways = {way: np.array(lines_) for way, lines_ in results["asked"].items()}
    lines += [
        "",
        f"Root mean squared error of the weights, the same users, {ANEW} times each, asked the "
        f"pair of largest expected gain among {PAIRS}, or a random one (paired over the same "
        "choices; the first pair is random in both; ± s.e., n = "
        f"{ANEW * len(USERS)}; Wilcoxon's two-sided p):",
        "",
        "| comparisons | largest gain | random pair | difference | p |",
        "|---|---|---|---|---|",
    ]
    for n in SHOWN:
        best, plain = (ways[way][:, n - 1] for way in ("largest gain", "random pair"))
        cells = [f"{v.mean():.3f} ± {stats.sem(v):.3f}" for v in (best, plain, best - plain)]
        p = stats.wilcoxon(best, plain).pvalue
        lines.append(f"| {n} | {' | '.join(cells)} | {p:.2g} |")
    return "\n".join([*lines, "", "![error over comparisons](taste.png)", ""])


TIES = ("no ties", "ties")


def shown(one: dict[str, Any]) -> str:
    return f"{one['mean']:.3f} ± {one['error']:.3f}"


def draw(errors: dict[str, Any], path: Path) -> None:
    """Error of the weights over the number of comparisons."""
    chart = Chart(height=3.6)
    panel = chart.panels[0]
    for (way, lines), shade in zip(errors.items(), SHADES, strict=False):
        values = np.array(lines)
        n = np.arange(1, values.shape[1] + 1)
        panel.line(way, n, values.mean(0), stats.sem(values), shade=shade, marker="")
    panel.axes.set(xlabel="comparisons", ylabel="error of the weights ± s.e.")
    panel.fit()
    chart.save(path)


def main() -> None:
    x = differences()
    results = {"made up": made_up(), "users": users(x), "asked": questions(x)}
    text = table(results)
    print(text)
    (RESULTS / "taste.json").write_text(json.dumps(results) + "\n")
    (RESULTS / "taste.md").write_text(text)
    draw(results["asked"], RESULTS / "taste.png")


if __name__ == "__main__":
    main()
