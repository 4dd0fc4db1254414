"""How completions rank: token mean reciprocal rank, and what length has to do with it."""

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
    """What `token_mean_reciprocal_rank` finds; None where no prompt has a best completion.

    by_score: where the completion that the scorer itself puts first in the end ranks before.
    by_reward: where the completion of the highest reward ranks.
    by_score_chance, by_reward_chance: what a scorer of random numbers gets on the same prompts.
    """

    by_score: Estimate | None
    by_score_chance: float | None
    by_reward: Estimate | None
    by_reward_chance: float | None


def token_mean_reciprocal_rank(
    scores: Sequence[Any], labels: ArrayLike, groups: Sequence[Hashable], *, seed: int = 0
) -> ReciprocalRank:
    """How early the winner of a prompt's K completions comes out on top.

        MRR = mean over prompts of  (1/T_w) Σ_{t=1}^{T_w} 1 / rank_t(w)

    rank_t(w) is 1 + the number of the prompt's K completions with a higher s(x, y^{1:t}) than the
    winner w; one that has ended before t keeps its last score. The winner is the completion with
    the highest last score (by_score) or reward (by_reward). Of several winners the mean is taken;
    among equal scores 1/rank is the mean over all orders of them. A prompt counts if it has several
    completions and they are not all alike. Chance is the mean of (1/K) Σ_{r=1}^{K} 1/r.

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
    found = [_reciprocal([arrays[i] for i in rows], final[rows]) for rows in counted]
    chance = [_harmonic(len(rows)) / len(rows) for rows in counted]
    return mean_of(found, range(len(found)), seed=seed), float(np.mean(chance))


def _reciprocal(rows: list[Floats], final: Floats) -> float:
    """Mean 1/rank of one prompt's winners over their tokens."""
    found = []
    for winner in np.flatnonzero(final == final.max()):
        own = rows[winner]  # [steps]
        steps = np.arange(len(own))
        others = np.stack([row[np.minimum(steps, len(row) - 1)] for row in rows])  # [K, steps]
        above, level = (others > own).sum(0), (others == own).sum(0)  # itself is level
        found.append(np.mean((_harmonic(above + level) - _harmonic(above)) / level))
    return float(np.mean(found))


def _harmonic(n: Any) -> Any:
    """Σ_{r=1}^{n} 1/r, elementwise."""
    most = int(np.max(n))
    return np.concatenate(([0.0], np.cumsum(1 / np.arange(1, most + 1))))[n]


class LengthCorrelation(Figures):
    """What `length_correlation` finds: Spearman's ρ, None where one side never varies."""

    score: float | None
    reward: float | None
    score_and_reward: float | None
    n: int


def length_correlation(
    scores: Sequence[Any], labels: ArrayLike, groups: Sequence[Hashable]
) -> LengthCorrelation:
    """Rank correlation of length with the score of whole completions, and with their reward.

    ρ(s(x, y), T), beside it ρ(R, T), and ρ(s(x, y), R): a scorer whose first is far from the second
    has learnt to count tokens.

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
