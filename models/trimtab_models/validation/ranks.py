"""Ranks of completions: token mean reciprocal rank, and correlation with length."""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from trimtab_models.validation.estimates import (
    Estimate,
    Figures,
    Floats,
    checked,
    clusters,
    mean_of,
    spearman,
)


class ReciprocalRank(Figures):
    """The result of `token_mean_reciprocal_rank`; None if no prompt has a best completion.

    by_score: the winner is the completion with the highest final score.
    by_reward: the winner is the completion with the highest reward.
    by_score_chance, by_reward_chance: the result of random scores on the same prompts.
    """

    by_score: Estimate | None
    by_score_chance: float | None
    by_reward: Estimate | None
    by_reward_chance: float | None


def token_mean_reciprocal_rank(
    scores: Sequence[Any], labels: ArrayLike, groups: Sequence[Hashable], *, seed: int = 0
) -> ReciprocalRank:
    """How early the winner of a prompt's K completions ranks first.

        MRR = mean over prompts of  (1/T_w) Σ_{t=1}^{T_w} 1 / rank_t(w)

    rank_t(w) is 1 + the number of the prompt's K completions with a higher s(x, y^{1:t}) than the
    winner w; one that has ended before t keeps its last score. The winner is the completion with
    the highest last score (by_score) or reward (by_reward); several winners are averaged. For equal
    scores, 1/rank is its mean over all their orders. A prompt counts if its completions differ in
    that score or reward. Chance is the mean of (1/K) Σ_{r=1}^{K} 1/r.

    Args, errors: as for `prefix_auc`.
    """
    arrays, rewards = checked(scores, labels, groups), np.asarray(labels, dtype=float)
    numbers = clusters(groups)
    members = [np.flatnonzero(numbers == group) for group in range(numbers.max() + 1)]
    ends = np.array([row[-1] for row in arrays])
    by_score, by_score_chance = _mean_rank(arrays, ends, members, seed)
    by_reward, by_reward_chance = _mean_rank(arrays, rewards, members, seed)
    return ReciprocalRank(
        by_score=by_score,
        by_score_chance=by_score_chance,
        by_reward=by_reward,
        by_reward_chance=by_reward_chance,
    )


def _mean_rank(
    arrays: list[Floats], final: Floats, members: list[Any], seed: int
) -> tuple[Estimate | None, float | None]:
    counted = [rows for rows in members if np.ptp(final[rows]) > 0]
    if not counted:
        return None, None
    ranks = [_reciprocal([arrays[i] for i in rows], final[rows]) for rows in counted]
    chance = [_harmonic(len(rows)) / len(rows) for rows in counted]
    return mean_of(ranks, range(len(ranks)), seed=seed), float(np.mean(chance))


def _reciprocal(rows: list[Floats], final: Floats) -> float:
    """Mean 1/rank of one prompt's winners over their tokens."""
    means = []
    for winner in np.flatnonzero(final == final.max()):
        own = rows[winner]  # [steps]
        steps = np.arange(len(own))
        others = np.stack([row[np.minimum(steps, len(row) - 1)] for row in rows])  # [K, steps]
        above, equal = (others > own).sum(0), (others == own).sum(0)  # equal includes itself
        means.append(np.mean((_harmonic(above + equal) - _harmonic(above)) / equal))
    return float(np.mean(means))


def _harmonic(n: Any) -> Any:
    """Σ_{r=1}^{n} 1/r, elementwise."""
    largest = int(np.max(n))
    return np.concatenate(([0.0], np.cumsum(1 / np.arange(1, largest + 1))))[n]


class LengthCorrelation(Figures):
    """The result of `length_correlation`: Spearman's ρ, None if one side is constant."""

    score: float | None
    reward: float | None
    score_and_reward: float | None
    n: int


def length_correlation(
    scores: Sequence[Any], labels: ArrayLike, groups: Sequence[Hashable]
) -> LengthCorrelation:
    """Rank correlations of whole completions' lengths, scores and rewards.

    ρ(s(x, y), T), ρ(R, T) and ρ(s(x, y), R). If the first differs much from the second, the scorer
    has learned to count tokens.

    Args, errors: as for `prefix_auc`.
    """
    arrays = checked(scores, labels, groups)
    ends = [row[-1] for row in arrays]
    lengths = [len(row) for row in arrays]
    return LengthCorrelation(
        score=spearman(ends, lengths),
        reward=spearman(labels, lengths),
        score_and_reward=spearman(ends, labels),
        n=len(arrays),
    )
