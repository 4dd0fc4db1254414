"""Means over completions, with standard errors that account for shared prompts."""

from collections.abc import Hashable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict
from scipy.stats import spearmanr

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]

RESAMPLES = 1000


class Figures(BaseModel):
    """Numbers of a validation, as stored in report.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Estimate(Figures):
    """A mean of n items and its standard error.

    The standard error is None if all items belong to one prompt.
    """

    mean: float
    standard_error: float | None
    n: int

    def __str__(self) -> str:
        if self.standard_error is None:
            return f"{self.mean:.3f}"
        return f"{self.mean:.3f} ± {self.standard_error:.3f}"


def clusters(groups: Sequence[Hashable]) -> Ints:
    """Prompts numbered 0, 1, ... in order of first appearance: [completions]."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(group, len(numbers)) for group in groups], dtype=np.int64)


def ratio(totals: Floats, counts: Floats, *, seed: int = 0) -> tuple[Floats, Floats | None]:
    """Σ_c totals / Σ_c counts, and its standard error by the bootstrap over clusters.

        se = deviation over resamples of  Σ_c w_c·totals_c / Σ_c w_c·counts_c,   w multinomial

    so that items of one prompt are resampled together.

    Args:
        totals: [clusters, ...] sums within each cluster.
        counts: [clusters] numbers of summed items; clusters with 0 are ignored.
        seed: of the resampling.

    Returns:
        [...] the ratios and [...] their standard errors, which are None with fewer than two
        clusters.
    """
    totals, counts = totals[counts > 0], counts[counts > 0]
    n = len(counts)
    means = totals.sum(0) / counts.sum()
    if n < 2:
        return means, None
    rng = np.random.default_rng(seed)
    flat = totals.reshape(n, -1)
    resampled = np.empty((RESAMPLES, flat.shape[1]))
    for row in resampled:
        weights = rng.multinomial(n, np.full(n, 1 / n)).astype(float)
        row[:] = weights @ flat / (weights @ counts)
    return means, resampled.std(0, ddof=1).reshape(totals.shape[1:])


def mean_of(values: ArrayLike, groups: Sequence[Hashable], *, seed: int = 0) -> Estimate:
    """The mean of values, with the standard error over the prompts in `groups`."""
    numbers, terms = clusters(groups), np.asarray(values, dtype=float)
    totals = np.bincount(numbers, weights=terms).astype(np.float64)
    mean, error = ratio(totals, np.bincount(numbers).astype(np.float64), seed=seed)
    return Estimate(
        mean=float(mean), standard_error=None if error is None else float(error), n=len(terms)
    )


def spearman(first: ArrayLike, second: ArrayLike) -> float | None:
    """Spearman's rank correlation; None if one side is constant."""
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(spearmanr(a, b).statistic)


def checked(scores: Sequence[Any], labels: ArrayLike, groups: Sequence[Hashable]) -> list[Floats]:
    """The scores as float64 arrays.

    Raises:
        ValueError: there are no completions, the lengths differ, a completion is empty, or a number
            is not finite.
    """
    if not len(scores):
        raise ValueError("there is no completion to validate on; expected at least two.")
    rewards = np.asarray(labels, dtype=float)
    if not len(scores) == len(rewards) == len(groups):
        raise ValueError(
            f"expected as many scores as labels and prompts; got {len(scores)} completions' "
            f"scores, {len(rewards)} labels and {len(groups)} prompts."
        )
    arrays = [np.asarray(row, dtype=float) for row in scores]
    for i, row in enumerate(arrays):
        if row.ndim != 1 or not len(row):
            raise ValueError(
                f"completion {i} has scores of the shape {row.shape}; expected [tokens], with at "
                "least one token."
            )
        if not np.isfinite(row).all():
            raise ValueError(f"completion {i} has a score that is not finite; fix the scorer.")
    if not np.isfinite(rewards).all():
        raise ValueError("a label is not finite; drop that completion, or fix its reward.")
    return arrays
