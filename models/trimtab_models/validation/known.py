"""How much of the reward a scorer knows when it has read a part of an answer."""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from trimtab_models.validation.estimates import (
    RESAMPLES,
    Figures,
    Floats,
    Ints,
    checked,
    clusters,
)
from trimtab_models.validation.intervals import Interval

PARTS = (10, 25, 50, 75, 100)
"""Percent of an answer that have been read."""
HALF = 50
"""The part by which a scorer is judged: steering must know the reward well before the end."""
INTERVAL = (0.025, 0.975)
ROUNDING = 1e-12


class Correlation(Interval):
    """Pearson's correlation over n completions, and its interval."""


class Known(Figures):
    """What a scorer knows of the reward after a part of each answer; see `known`.

    percent: the part that has been read.
    reward: correlation of score and reward.
    beyond_prompt: the same, each less its prompt's mean. None if no prompt has completions of
    different rewards.
    """

    percent: int
    reward: Correlation
    beyond_prompt: Correlation | None


def known(
    scores: Sequence[Any], labels: ArrayLike, groups: Sequence[Hashable], *, seed: int = 0
) -> list[Known]:
    """Correlation of prefix scores with the reward of the whole answer, for each of `PARTS`.

        reward         ρ(s_i, R_i),              s_i = s(x, y_i^{1:⌈p·T_i⌉})
        beyond_prompt  ρ(s_i − s̄_x, R_i − R̄_x),  the means over the completions of the prompt x

    A prompt alone may tell much of the reward, and steering cannot use it: all the candidates of a
    step share it. Only the second correlation can steer. Intervals are percentiles of the bootstrap
    over prompts.

    Args:
        scores: one [tokens] of prefix scores for each completion.
        labels: [completions] rewards of the whole completions.
        groups: [completions] the prompt of each, any hashable value.
        seed: of the bootstraps.

    Raises:
        ValueError: all rewards are equal; or as `checked`.
    """
    arrays, rewards = checked(scores, labels, groups), np.asarray(labels, dtype=float)
    numbers = clusters(groups)
    several = np.bincount(numbers)[numbers] > 1  # other completions are their prompt's mean
    results = []
    for percent in PARTS:
        at = np.array([row[(percent * len(row) + 99) // 100 - 1] for row in arrays])
        reward = correlation(at, rewards, groups, seed=seed)
        if reward is None:
            raise ValueError(
                f"all {len(arrays)} completions have the reward {rewards[0]:g}; validate on "
                "completions of different rewards."
            )
        beyond = None
        if several.any():
            left, right = (_less_means(side, numbers)[several] for side in (at, rewards))
            beyond = correlation(left, right, numbers[several].tolist(), seed=seed)
        results.append(Known(percent=percent, reward=reward, beyond_prompt=beyond))
    return results


def correlation(
    first: Floats, second: Floats, groups: Sequence[Hashable], *, seed: int = 0
) -> Correlation | None:
    """Pearson's correlation, with the 95 % interval of the bootstrap over groups.

    Where `first` is constant it tells nothing of `second`: 0. None if `second` is constant.

    Args:
        first, second: [completions]
        groups: [completions]; all completions of a group are drawn together.
        seed: of the bootstrap.
    """
    if np.ptp(second) == 0:
        return None
    numbers = clusters(groups)
    count = int(numbers.max()) + 1
    value = float(_resampled(first, second, numbers, np.ones((1, count)))[0])
    if count < 2:
        return Correlation(value=value, low=None, high=None, n=len(first))
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    low, high = np.quantile(_resampled(first, second, numbers, draws), INTERVAL)
    return Correlation(value=value, low=float(low), high=float(high), n=len(first))


def _resampled(first: Floats, second: Floats, numbers: Ints, draws: Any) -> Floats:
    """The correlation in each resample in which `second` varies; see `correlation`.

    draws: [resamples, groups] how often each group is drawn.
    """
    a, b = _standard(first), _standard(second)
    moments = np.stack((np.ones_like(a), a, b, a * a, b * b, a * b), axis=1)
    sums = np.zeros((draws.shape[1], 6))
    np.add.at(sums, numbers, moments)
    n, a, b, aa, bb, ab = (draws @ sums).T  # each [resamples]
    left, right, both = aa / n - (a / n) ** 2, bb / n - (b / n) ** 2, ab / n - a * b / n**2
    correlations = np.zeros_like(n)
    varies = (left > ROUNDING) & (right > ROUNDING)
    correlations[varies] = both[varies] / np.sqrt(left[varies] * right[varies])
    return correlations[right > ROUNDING]


def _standard(values: Floats) -> Floats:
    """Values less their mean, in deviations; zeros if they are equal."""
    deviation = values.std() if np.ptp(values) > 0 else 1.0
    return np.asarray((values - values.mean()) / deviation)


def _less_means(values: Floats, numbers: Ints) -> Floats:
    """Each value less the mean of its group; a difference of rounding is 0."""
    rest = values - (np.bincount(numbers, weights=values) / np.bincount(numbers))[numbers]
    rest[np.abs(rest) <= ROUNDING * np.abs(values).max()] = 0
    return rest
