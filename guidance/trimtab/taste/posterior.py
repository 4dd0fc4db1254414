"""The posterior of a user's weights, from comparisons of answers.

Bradley-Terry with ties, as Davidson (1970) has it: for the difference d = w·x of two answers'
utilities, x the difference of their scores,

    P(first) : P(second) : P(tie) = exp(d/2) : exp(−d/2) : ν

so that P(first | no tie) = σ(d). Without a tie in the data only σ(d) is fitted. The prior is
w_i ~ N(0, PRIOR²) for scores in units of their deviation, and log ν ~ N(0, 1).

The log-posterior is concave, so it has one mode, which Newton's method finds. Its draws are a
multivariate t around the mode, weighted to be exact (importance sampling): the prior's tails are
lighter than the t's, so that no weight is large. If the t fits badly, it is moved to the weighted
draws, and drawn again. `laplace` is the reference: the normal distribution at the mode.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from trimtab.taste.comparisons import TIE

PRIOR = 2.0
"""Deviation of a weight before any comparison: logits of a choice per deviation of a score."""
TIE_PRIOR = 1.0
"""Deviation of log ν before any comparison."""
DRAWS = 16384
FREEDOM = 5.0
"""Degrees of freedom of the t."""
ROUNDS = 4
"""How often the t is fitted at most."""
ENOUGH = 0.2
"""Share of effective draws at which it fits."""
AT_ONCE = 512
"""Draws whose likelihoods are computed at once, which bounds the memory."""
STEPS = 100
"""Maximum steps of Newton's method; it takes about ten."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Posterior:
    """Weighted draws of the weights, and the mode."""

    draws: Array  # [draws, parameters]: the weights, then log ν if there were ties
    shares: Array  # [draws], Σ = 1
    mode: Array  # [parameters]
    covariance: Array  # [parameters, parameters] of the normal distribution at the mode
    dimensions: int  # weights

    @property
    def mean(self) -> Array:
        """[parameters]."""
        return np.asarray(self.shares @ self.draws)

    @property
    def deviation(self) -> Array:
        """[parameters]."""
        return np.sqrt(self.shares @ (self.draws - self.mean) ** 2)

    @property
    def effective(self) -> float:
        """Number of independent draws that are worth as much."""
        return float(1 / (self.shares**2).sum())

    def interval(self, level: float) -> Array:
        """Equal-tailed credible intervals, [parameters, 2]."""
        ends = (1 - level) / 2, (1 + level) / 2
        return np.stack([self._quantiles(column, ends) for column in self.draws.T])

    def positive(self) -> Array:
        """P(parameter > 0), [parameters]."""
        return np.asarray(self.shares @ (self.draws > 0))

    def laplace(self, level: float) -> Array:
        """The intervals of the normal distribution at the mode, [parameters, 2]."""
        reach = NormalDist().inv_cdf((1 + level) / 2) * np.sqrt(np.diag(self.covariance))
        return np.stack((self.mode - reach, self.mode + reach), axis=1)

    def resampled(self, count: int) -> Array:
        """Equally weighted draws, [count, parameters], at even steps of the shares' sum."""
        steps = (np.arange(count) + 0.5) / count
        at = np.searchsorted(np.cumsum(self.shares), steps).clip(max=len(self.shares) - 1)
        return np.asarray(self.draws[at])

    def _quantiles(self, values: Array, ends: Sequence[float]) -> Array:
        order = values.argsort()
        sums = np.cumsum(self.shares[order]) - self.shares[order] / 2
        return np.interp(ends, sums, values[order])


def features(differences: Array, ties: bool) -> Array:
    """What the logits of each outcome are linear in: [pairs, outcomes, parameters].

    differences: [pairs, scorers] x, the first answer's scores less the second's.
    """
    half = differences / 2
    if not ties:
        return np.stack((half, -half), axis=1)
    none = np.zeros((len(half), 1))
    both = np.hstack((np.zeros_like(half), none + 1))
    return np.stack((np.hstack((half, none)), np.hstack((-half, none)), both), axis=1)


def log_odds(draws: Array, table: Array) -> Array:
    """Log-probabilities of the outcomes of pairs, [draws, pairs, outcomes]."""
    logits = np.tensordot(draws, table, (1, 2))
    logits -= logits.max(-1, keepdims=True)
    return np.asarray(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))


def fit(
    differences: Array, outcomes: Sequence[int], *, draws: int = DRAWS, seed: int = 0
) -> Posterior:
    """The posterior from compared pairs.

    Args:
        differences: [pairs, scorers] x, each scorer's in units of its deviation.
        outcomes: FIRST, SECOND or TIE for each pair.
        draws: number of draws.
        seed: of the draws.
    """
    ties = TIE in outcomes
    table = features(np.asarray(differences, dtype=np.float64), ties)
    seen = np.asarray(outcomes)
    dimensions = differences.shape[1]
    precision = np.array([PRIOR**-2] * dimensions + [TIE_PRIOR**-2] * ties)
    mode, covariance = _mode(table, seen, precision)
    random = np.random.default_rng(seed)
    centre, scale = mode, covariance
    for _ in range(ROUNDS):
        drawn, log_t = _t(random, centre, scale, draws)
        logs = _log_posterior(drawn, table, seen, precision) - log_t
        shares = np.exp(logs - logs.max())
        shares /= shares.sum()
        made = Posterior(drawn, shares, mode, covariance, dimensions)
        if made.effective >= ENOUGH * draws:
            break
        centre, away = made.mean, drawn - made.mean
        scale = (away * shares[:, None]).T @ away
    return made


def _log_posterior(draws: Array, table: Array, seen: Array, precision: Array) -> Array:
    """Up to a constant: [draws]."""
    own = np.arange(len(seen)), seen
    likely = [
        log_odds(draws[start : start + AT_ONCE], table)[:, *own].sum(-1)
        for start in range(0, len(draws), AT_ONCE)
    ]
    return np.asarray(np.concatenate(likely) - (draws**2) @ precision / 2)


def _mode(table: Array, seen: Array, precision: Array) -> tuple[Array, Array]:
    """The mode, and the inverse of the negative Hessian there."""
    at = np.zeros(table.shape[2])
    value = _log_posterior(at[None], table, seen, precision)[0]
    for _ in range(STEPS):
        odds = np.exp(log_odds(at[None], table)[0])  # [pairs, outcomes]
        mean = np.einsum("po,pod->pd", odds, table)
        own = table[np.arange(len(seen)), seen]
        slope = (own - mean).sum(0) - precision * at
        away = table - mean[:, None]
        curve = np.einsum("po,pod,poe->de", odds, away, away) + np.diag(precision)
        step = np.linalg.solve(curve, slope)
        if slope @ step < 1e-12:
            break
        size = 1.0
        while True:
            new = _log_posterior((at + size * step)[None], table, seen, precision)[0]
            if new >= value or size < 1e-6:
                break
            size /= 2
        at, value = at + size * step, new
    return at, np.linalg.inv(curve)


def _t(random: np.random.Generator, centre: Array, scale: Array, count: int) -> tuple[Array, Array]:
    """Draws of a multivariate t, [count, parameters], and their log-densities up to a constant."""
    root = np.linalg.cholesky(scale)
    plain = random.standard_normal((count, len(centre)))
    plain /= np.sqrt(random.chisquare(FREEDOM, (count, 1)) / FREEDOM)
    sizes = (plain**2).sum(-1)
    return centre + plain @ root.T, -(FREEDOM + len(centre)) / 2 * np.log1p(sizes / FREEDOM)
