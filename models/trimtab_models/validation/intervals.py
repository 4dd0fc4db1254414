"""95 % intervals: of a share of independent items, and of a mean over prompts."""

from collections.abc import Hashable, Sequence

import numpy as np
from scipy.stats import norm

from trimtab_models.validation.estimates import RESAMPLES, Figures, Floats, clusters

LEVEL = 0.95
SEVERAL = 2


class Interval(Figures):
    """A figure of n items, and its 95 % interval, None if all items belong to one prompt."""

    value: float
    low: float | None
    high: float | None
    n: int

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:.3f}"
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def wilson(successes: float, n: int) -> Interval:
    """Wilson's score interval of a share of n independent items.

        (p + z²/2n ± z·√(p(1−p)/n + z²/4n²)) / (1 + z²/n),   p = successes/n

    Args:
        successes: a tie may count half.
        n: at least 1.
    """
    p, z = successes / n, float(norm.ppf((1 + LEVEL) / 2))
    centre, spread = p + z * z / (2 * n), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    scale = 1 + z * z / n
    return Interval(value=p, low=(centre - spread) / scale, high=(centre + spread) / scale, n=n)


def over_prompts(
    totals: Floats, counts: Floats, groups: Sequence[Hashable], n: int, *, seed: int = 0
) -> Interval:
    """Σ totals / Σ counts over items, with percentiles of the bootstrap over prompts.

    Args:
        totals, counts: [items]; a mean of values has counts of 1.
        groups: [items] the prompt of each; items of a prompt are drawn together.
        n: the number that the result reports.
        seed: of the bootstrap.
    """
    numbers = clusters(groups)
    over, under = (np.bincount(numbers, weights=part) for part in (totals, counts))
    value = float(over.sum() / under.sum())
    if len(over) < SEVERAL:
        return Interval(value=value, low=None, high=None, n=n)
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(len(over), np.full(len(over), 1 / len(over)), size=RESAMPLES)
    drawn = draws @ under
    ratios = (draws @ over)[drawn != 0] / drawn[drawn != 0]
    low, high = np.quantile(ratios, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Interval(value=value, low=float(low), high=float(high), n=n)
