"""Statistics of results on the same prompts: all values are per prompt, so tests are paired."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from trimtab_lab.arena.frontier import Floats
from trimtab_models.validation import Estimate

RESAMPLES = 2000
EQUAL = 1e-12
"""Differences that differ by less, in absolute and relative terms, are equal but for rounding."""


def estimate(values: Floats) -> Estimate:
    """Mean ± s.e. over prompts, [prompts]."""
    n = len(values)
    error = float(values.std(ddof=1) / np.sqrt(n)) if n > 1 else None
    return Estimate(mean=float(values.mean()), standard_error=error, n=n)


@dataclass(frozen=True)
class Paired:
    """A difference on the same prompts: mean, 95 % bootstrap interval, and one-sided p."""

    difference: float
    low: float
    high: float
    p: float
    n: int

    def as_dict(self) -> dict[str, Any]:
        """Its fields."""
        return asdict(self)


def paired(better: Floats, worse: Floats, seed: int = 0, *, read: bool = False) -> Paired:
    """The difference `better` − `worse`, [prompts] each, and a test that it is above 0.

    p is from Wilcoxon's signed-rank test, for differences centred at 0 or below.

    read: the values were read between settings, by `at_kl`. Then p is Student's, for a mean at 0 or
    below: where two methods give most prompts the same answers, most differences are small and of
    one sign, and few large ones of the other make up for them, which ranks do not see.
    """
    d = better - worse
    mean = float(d.mean())
    if np.ptp(d) <= EQUAL * max(1.0, abs(mean)):  # all are equal: ranks and resamples are undefined
        return Paired(mean, mean, mean, 1.0 if mean <= 0 else 0.5 ** len(d), len(d))
    interval = stats.bootstrap(
        (d,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(seed)
    ).confidence_interval
    if read:
        p = stats.ttest_1samp(d, 0, alternative="greater").pvalue
        return Paired(mean, float(interval.low), float(interval.high), float(p), len(d))
    # Means of several answers tie exactly only if all answers tie; such pairs carry no information.
    p = stats.wilcoxon(d, alternative="greater", method="asymptotic", zero_method="wilcox").pvalue
    return Paired(mean, float(interval.low), float(interval.high), float(p), len(d))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction: p-values of a family of tests, valid for all of them together.

    p'_(i) = max_{j ≤ i} min(1, (m − j + 1)·p_(j))
    """
    order = np.argsort(p)
    factors = np.arange(len(p), 0, -1)
    stepped = np.maximum.accumulate(np.minimum(1.0, factors * np.asarray(p)[order]))
    adjusted = np.empty(len(p))
    adjusted[order] = stepped
    return [float(value) for value in adjusted]


def at_kl(points: Sequence[tuple[Floats, Floats]], kl: float) -> Floats | None:
    """Each prompt's reward at a mean KL of `kl`, read between settings: [prompts].

    Linear in √KL, because the frontier is nearly straight in √KL near 0. Between two settings with
    rewards r_0, r_1, KL k_0, k_1 (bars are means over prompts) and s = √k̄,

        v_i = (1 − t)·r_0i + t·r_1i − (r̄_1 − r̄_0)/(s_1 − s_0)·((1 − t)·u_0i + t·u_1i)
        t = (√kl − s_0)/(s_1 − s_0),   u_ji = (k_ji − k̄_j)/(2·s_j)

    The last term has the mean 0. It is what a prompt's own KL does to t (the delta method): so
    tests and standard errors over prompts contain the error of the mean KL too. If all settings are
    below `kl`, the one of highest KL is used: a method may spend less. None if all are above.

    Args:
        points: (rewards, kl) of each setting, [prompts] each; include the base for KL 0.
        kl: nats.
    """
    roots = np.sqrt([spent.mean() for _, spent in points])
    order = np.argsort(roots, kind="stable")
    if not points or roots[order[0]] > np.sqrt(kl):
        return None
    rewards = np.array([points[i][0] for i in order])  # [settings, prompts]
    right = int(np.searchsorted(roots[order], np.sqrt(kl), side="right"))
    if right == len(order):
        return np.asarray(rewards[-1])
    low, high = roots[order][right - 1 : right + 1]
    t = (np.sqrt(kl) - low) / (high - low)
    value, moved = np.zeros(rewards.shape[1]), np.zeros(rewards.shape[1])
    for weight, at in ((1 - t, right - 1), (t, right)):
        value += weight * rewards[at]
        if roots[order][at] > 0:
            spent = points[order[at]][1]
            moved += weight * (spent - spent.mean()) / (2 * roots[order][at])
    slope = (rewards[right].mean() - rewards[right - 1].mean()) / (high - low)
    return np.asarray(value - slope * moved)


def interval_at_kl(
    points: Sequence[tuple[Floats, Floats]], kl: float, seed: int = 0
) -> tuple[float, float]:
    """95 % bootstrap interval over prompts of the mean of `at_kl`.

    Each resample has its own mean KL of every setting, so the interval contains the error of the
    interpolation's place too. Where a resample has no setting below `kl`, its lowest one counts.
    """
    rng = np.random.default_rng(seed)
    n = len(points[0][0])
    weights = rng.multinomial(n, np.full(n, 1 / n), RESAMPLES) / n  # [resamples, prompts]
    rewards = weights @ np.array([reward for reward, _ in points]).T  # [resamples, settings]
    roots = np.sqrt(weights @ np.array([spent for _, spent in points]).T)
    order = np.argsort(roots, axis=1, kind="stable")
    sorted_roots, sorted_rewards = (np.take_along_axis(x, order, 1) for x in (roots, rewards))
    means = [
        np.interp(np.sqrt(kl), x, y) for x, y in zip(sorted_roots, sorted_rewards, strict=True)
    ]
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def wins(ours: Floats, theirs: Floats) -> dict[str, float]:
    """Shares of wins and ties, answer by answer: [prompts, answers] each."""
    return {"win": float((ours > theirs).mean()), "tie": float((ours == theirs).mean())}
