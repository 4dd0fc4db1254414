"""`trimtab arena tiny`: token-level decoders and best-of-N, compared exactly with the optimum."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trimtab.params import GuidanceParams
from trimtab_lab.arena.exact import ScoreFunction, beta_at, decode, mean_reward, optimum, soft_value
from trimtab_lab.arena.report import about
from trimtab_lab.worlds.limits import bradley_terry
from trimtab_lab.worlds.tiny import PROMPTS, Tiny, reward
from trimtab_models import outputs
from trimtab_models.drawing import INK, Chart
from trimtab_models.outputs import put

NAME = "tiny"
BETAS = (0.5, 1.0, 2.0, 4.0, 8.0)
SHARPNESS = 2.0
"""Of the judge whose preferences PARGS's scorer fits."""
ALL: dict[str, Any] = {"k": 4, "mass": 1.0}
PAPER: dict[str, Any] = {"k": 2, "mass": 1.0, "tail": "truncate"}
"""Half of the vocabulary, as the papers' k = 10 is a part of a real one."""


@dataclass(frozen=True)
class Exact:
    """One decoder at one setting; rewards and nats are expectations, not estimates."""

    method: str
    setting: str
    beta: float | None
    reward: float
    kl: float
    optimum: float
    """Reward of the exact optimum at the same KL; above its largest KL, the highest reward."""
    efficiency: float | None
    """Gain over the base ÷ the optimum's gain at this KL; None at a KL of 0."""


def scores(tiny: Tiny) -> Mapping[str, tuple[ScoreFunction, dict[str, Any], float]]:
    """By method: the limit that its scorer converges to, its candidates, and its temperature."""
    partial = dict(zip(tiny.states, bradley_terry(tiny, SHARPNESS).tolist(), strict=True))

    def whole(x: Any, y: Any, c: float) -> float:
        # A reward model of whole answers scores a prefix as if it were a whole answer.
        return reward(x, y)

    def pargs(x: Any, y: Any, c: float) -> float:
        return partial[x, y] / SHARPNESS

    def value(x: Any, y: Any, c: float) -> float:
        return tiny.value(x, y)

    def fudge(x: Any, y: Any, c: float) -> float:
        return math.log(max(tiny.attribute(x, y), 1e-6))

    return {
        "ARGS (greedy)": (whole, PAPER, 0.0),
        "ARGS": (whole, PAPER, 1.0),
        "PARGS-G": (pargs, PAPER, 0.0),
        "PARGS": (pargs, PAPER, 1.0),
        "VAS": (value, PAPER | {"tail": "mean"}, 1.0),
        "VAS, tail cut": (value, PAPER, 1.0),
        "CD, all tokens": (value, ALL, 1.0),
        "FUDGE": (fudge, ALL, 1.0),
        "soft value, k = 2": (soft_value(tiny), PAPER, 1.0),
        "soft value, all tokens": (soft_value(tiny), ALL, 1.0),
    }


def best_of(tiny: Tiny, n: int) -> Tensor:
    """Probabilities of the best of n answers of the base, [finals]; ties by base probability."""
    parts = []
    for p, rewards in zip(
        tiny.probabilities.view(len(PROMPTS), -1),
        tiny.rewards.view(len(PROMPTS), -1),
        strict=True,
    ):
        at_most = (p * (rewards[None] <= rewards[:, None] + 1e-12)).sum(1)  # P(R ≤ R(y))
        equal = (p * ((rewards[None] - rewards[:, None]).abs() <= 1e-12)).sum(1)
        parts.append((at_most**n - (at_most - equal).clamp(min=0) ** n) * p / equal)
    return torch.cat(parts)


def run(tiny: Tiny) -> list[Exact]:
    """Every method at every β."""
    base = mean_reward(tiny, tiny.probabilities)

    def judge(method: str, setting: str, beta: float | None, p: Tensor, kl: float) -> Exact:
        mean = mean_reward(tiny, p)
        at = beta_at(tiny, kl)
        best = mean_reward(tiny, optimum(tiny, min(at, 1e4))[0])
        share = (mean - base) / (best - base) if kl > 1e-6 else None
        return Exact(method, setting, beta, mean, kl, best, share)

    results = [judge("base", "", None, tiny.probabilities, 0.0)]
    cut, kl = decode(tiny, lambda x, y, c: 0.0, GuidanceParams.parse({"beta": 1.0, **PAPER}))
    results.append(judge("top-k", "k = 2", None, cut, float(kl)))
    for method, (score, candidates, temperature) in scores(tiny).items():
        for beta in BETAS:
            params = GuidanceParams.parse({"beta": beta, **candidates})
            p, kl = decode(tiny, score, params, temperature)
            results.append(judge(method, f"β = {beta:g}", beta, p, float(kl)))
    for n in (2, 4, 16, 64):
        p = best_of(tiny, n)
        kl = (p * (p / tiny.probabilities).clamp(min=1e-300).log()).sum() / len(PROMPTS)
        results.append(judge("best-of-N", f"N = {n}", None, p, float(kl)))
    return results


def compare(out: Path, command: str) -> None:
    """Run all methods; write results.json, leaderboard.md and frontier.png (takes seconds).

    Raises:
        InTheWay: (an OSError) the directory holds something else.
    """
    out = outputs.claim(out, {"world": NAME})
    results, facts = run(Tiny()), about(command)
    content = {"world": NAME, "leaderboard": [asdict(one) for one in results], "about": facts}
    put(out / "results.json", json.dumps(content, ensure_ascii=False) + "\n")
    put(out / "leaderboard.md", table(results) + f"\n`{command}`\n")
    draw(results, out / "frontier.png")


def table(results: list[Exact]) -> str:
    """The results as Markdown."""
    lines = [
        "# tiny: everything is enumerated",
        "",
        "Expectations, not estimates: four tokens, answers of at most four, two prompts. Scorers "
        "are what their objectives converge to. *efficiency* is the gain over the base as a share "
        "of the exact optimum's at the same KL.",
        "",
        "| method | setting | reward | KL, nats | optimum at that KL | efficiency |",
        "|---|---|---|---|---|---|",
    ]
    for one in results:
        share = "" if one.efficiency is None else f"{one.efficiency:.3f}"
        lines.append(
            f"| {one.method} | {one.setting} | {one.reward:.4f} | {one.kl:.4f} "
            f"| {one.optimum:.4f} | {share} |"
        )
    return "\n".join(lines) + "\n"


def draw(results: list[Exact], path: Path) -> None:
    """Plot reward over KL, with a line through the settings of each method."""
    chart = Chart(height=4.2)
    panel = chart.panels[0]
    tiny = Tiny()
    curve = [optimum(tiny, beta)[0:2] for beta in np.geomspace(0.01, 40, 200)]
    kl, reward = [float(one) for _, one in curve], [mean_reward(tiny, p) for p, _ in curve]
    panel.line("exact optimum", kl, reward, shade=INK, marker="", linewidth=2.4)
    for method in dict.fromkeys(one.method for one in results):
        points = sorted((one.kl, one.reward) for one in results if one.method == method)
        panel.line(method, *zip(*points, strict=True))
    panel.axes.set(xlabel="KL to the base, nats per answer", ylabel="mean reward", xlim=(0, 2.4))
    panel.fit()
    chart.save(path)
