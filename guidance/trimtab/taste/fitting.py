"""From comparisons and the scores of their answers to weights, a guidance and the next question.

A user's utility of an answer is u = Σ_i w_i·s_i / deviation_i, in logits of a choice. The weights
are reported in this unit, which is that of `normalize`: so the guidance of β = 1 samples from
π0·exp(u), and its `kl_budget` bounds what the taste may cost.

For the prior, scores are in units of how much the answers of one prompt differ: the root of half
the mean squared difference of the compared pairs. So it does not matter in which unit a scorer
scores, nor whether its `deviation` is known.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trimtab.errors import InvalidRequest
from trimtab.params import MAX_WEIGHT, GuidanceParams
from trimtab.taste import gain, posterior
from trimtab.taste.comparisons import (
    TIE,
    Candidate,
    Comparison,
    Pair,
    Question,
    compared,
    open_pairs,
)
from trimtab.taste.posterior import Array, Posterior

LEVEL = 0.9
"""Default probability of an interval."""
NEXT = 5
"""Number of pairs to ask about next."""
DIGITS = 4
"""Significant digits of a preset's weights."""

Strength = Mapping[str, float]
"""{"beta": …} or {"kl_budget": …}."""
Scores = Mapping[tuple[Question, str], Mapping[str, float]]
"""Each scorer's score of a whole answer, by prompt and answer."""


@dataclass(frozen=True)
class Taste:
    """The fit: `weights` by scorer, the guidance, what to ask next, and how good the draws are."""

    fields: dict[str, Any]
    """Ready for JSON."""
    guidance: dict[str, Any]
    """The fields of a request's guidance, and of a preset's."""


def pairs_of(comparisons: Sequence[Comparison], candidates: Sequence[Candidate]) -> list[Pair]:
    """All pairs of which `learn` needs scores."""
    return [*compared(comparisons), *open_pairs(comparisons, candidates)]


def learn(
    comparisons: Sequence[Comparison],
    candidates: Sequence[Candidate],
    scores: Scores,
    deviations: Mapping[str, float],
    strength: Strength,
    *,
    level: float = LEVEL,
    seed: int = 0,
) -> Taste:
    """Fit the weights.

    Args:
        comparisons: what the user preferred.
        candidates: answers that may be compared next; if none, those at hand.
        scores: of all answers of `pairs_of`.
        deviations: of each scorer, by name; the weights are of these scorers.
        strength: of the guidance, `beta` or `kl_budget`.
        level: probability of each weight's interval.
        seed: of the posterior's draws.

    Raises:
        InvalidRequest: no scorer tells any two answers apart, or a weight is too large to serve.
        InvalidGuidance: the strength is out of range.
    """
    names = list(deviations)
    pairs, others = compared(comparisons), open_pairs(comparisons, candidates)
    raw = _differences(pairs, scores, names)  # [pairs, scorers]
    spread = np.sqrt((raw**2).mean(0) / 2)  # [scorers]
    if not spread.any():
        raise InvalidRequest(
            "no scorer tells the compared answers apart: each gives both answers of every pair one "
            "score. Name other scorers, or compare other answers.",
            param="scorers",
        )
    units = np.where(spread > 0, spread, [deviations[name] for name in names])
    scale = np.array([deviations[name] for name in names]) / units
    fitted = posterior.fit(raw / units, [one.outcome for one in comparisons], seed=seed)
    weights = _weights(fitted, names, scale, level, spread > 0)
    guidance = _guidance({name: one["mean"] for name, one in weights.items()}, strength)
    fields: dict[str, Any] = {
        "weights": weights,
        "level": level,
        "comparisons": len(comparisons),
        "ties": sum(one.outcome == TIE for one in comparisons),
        "undecided": [
            n for n, one in weights.items() if one["interval"][0] <= 0 <= one["interval"][1]
        ],
        "draws": len(fitted.draws),
        "effective_draws": round(fitted.effective),
        "ask": _questions(fitted, others, _differences(others, scores, names) / units),
        "guidance": guidance,
    }
    return Taste(fields, guidance)


def _differences(pairs: Sequence[Pair], scores: Scores, names: Sequence[str]) -> Array:
    """Scores of the first answer less those of the second, [pairs, scorers]."""
    rows = [
        [scores[p.question, p.first][n] - scores[p.question, p.second][n] for n in names]
        for p in pairs
    ]
    return np.array(rows, dtype=np.float64).reshape(len(pairs), len(names))


def _weights(
    fitted: Posterior, names: Sequence[str], scale: Array, level: float, informed: Array
) -> dict[str, dict[str, Any]]:
    """Each weight's mean, deviation, interval and P(w > 0).

    informed: whether any two compared answers differ in the scorer's score, [scorers].
    """
    mean, deviation = fitted.mean, fitted.deviation
    intervals, positive = fitted.interval(level), fitted.positive()
    return {
        name: {
            "mean": float(mean[i] * scale[i]) if informed[i] else 0.0,
            "deviation": float(deviation[i] * scale[i]),
            "interval": [float(end * scale[i]) for end in intervals[i]],
            "positive": float(positive[i]),
        }
        for i, name in enumerate(names)
    }


def _guidance(means: Mapping[str, float], strength: Strength) -> dict[str, Any]:
    """The guidance of these weights, which a request or a preset may have."""
    large = [name for name, mean in means.items() if abs(mean) > MAX_WEIGHT]
    if large:
        raise InvalidRequest(
            f"the weight of scorer '{large[0]}' is more than {MAX_WEIGHT:g} in size: the answers "
            "hardly differ in its score. Leave it out, or compare answers that differ more.",
            param="scorers",
        )
    scorers = {name: float(f"{mean:.{DIGITS}g}") for name, mean in means.items()}
    guidance = {"scorers": scorers, "normalize": True, **strength}
    GuidanceParams.parse(guidance)
    return guidance


def _questions(
    fitted: Posterior, pairs: Sequence[Pair], differences: Array
) -> list[dict[str, Any]]:
    """The pairs with the largest expected gain, the largest first."""
    gains, firsts = gain.expected_gain(fitted, differences)
    return [
        {
            **_shown(pairs[i].question),
            "answers": [pairs[i].first, pairs[i].second],
            "gain": float(gains[i]),
            "first": float(firsts[i]),
        }
        for i in np.argsort(-gains, kind="stable")[:NEXT]
    ]


def _shown(question: Question) -> dict[str, Any]:
    messages = question.messages()
    return {"prompt": question.prompt} if messages is None else {"messages": messages}
