"""What a scorer expects after each candidate of a step, and what each strength makes of it.

A return distribution p(R | prefix + v), tilted by a strength c on a utility u(R) and d on R itself:

    p_cd ∝ p·exp(c·u(R) + d·R),   Λ = log E_p exp(c·u(R) + d·R),   K = KL(p_cd ‖ p)

Guidance at these strengths after some prefix turns p into p_cd and costs K nats for the rest of the
answer: by the chain rule, K at the prefix is this step's KL plus the mean of K after it. A plain
score s is a return that is certain: Λ = c·s, and K = 0 says nothing about the rest.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from trimtab.params import MAX_BETA

TOLERANCE = 1e-9
"""Relative change of a root at which the search for it ends."""
TINY = 1e-12
"""Variance below which a return is certain."""
MOST = 64
"""Maximum number of its evaluations."""


@dataclass(frozen=True)
class Tilted:
    """What strengths make of each candidate's returns; each [n]."""

    moment: Tensor  # Λ
    kl: Tensor  # K, nats
    mean: Tensor  # E R under p_cd, which is ∂Λ/∂d
    variance: Tensor  # of R under p_cd, which is ∂²Λ/∂d²


@dataclass(frozen=True)
class Outlook:
    """One scorer's returns for a step's candidates, packed; float64, on the host."""

    log_p: Tensor  # [n, bins]
    returns: Tensor  # [bins], or [n, 1] scores
    row: Tensor  # [n] int64, row of each candidate
    place: Tensor  # [n] int64, index of the candidate in its row
    weight: Tensor  # [rows], w_i, the factor of β
    foresees: bool = True  # whether K tells what the rest of the answer costs
    known: float = 1.0  # share of the return's variance that the scorer knows at the end
    utility: Tensor | None = None  # [rows, bins], u(R); None if it is R in all rows
    doubt: Tensor | None = None  # [n], variance of R that nobody steers any more; None: 0

    @classmethod
    def certain(cls, scores: Tensor, row: Tensor, place: Tensor, weight: Tensor) -> "Outlook":
        """Plain scores, [n]."""
        returns = scores[:, None].double()
        return cls(torch.zeros_like(returns), returns, row, place, weight, foresees=False)

    @property
    def distributional(self) -> bool:
        """Whether it has distributions, not plain scores."""
        return self.returns.ndim == 1

    @property
    def members(self) -> list[int]:
        """The rows that it knows."""
        return self.row.unique().tolist()

    @cached_property
    def steered(self) -> Tensor:
        """Returns as far as they can be steered, [bins], or [n, bins]; K and Λ are of these.

        Around its mean, each histogram is narrowed until its variance is less by `doubt`.
        """
        if self.doubt is None:
            return self.returns
        p = self.log_p.exp()
        mean = (p @ self.returns)[:, None]
        variance = (p * (self.returns - mean).square()).sum(-1)
        share = (1 - self.doubt / variance.clamp(min=TINY)).clamp(min=0)
        return mean + share.sqrt()[:, None] * (self.returns - mean)

    def tilt(self, c: Tensor, d: Tensor) -> Tilted:
        """Of every candidate; c and d: [n]."""
        returns = self.steered
        if self.utility is None:
            exponents = (c + d)[:, None] * returns
        else:
            exponents = c[:, None] * self.utility[self.row] + d[:, None] * returns
        weights = self.log_p + exponents
        moment = weights.logsumexp(-1)
        p = (weights - moment[:, None]).exp()
        mean = (p * returns).sum(-1)
        gain = (c + d) * mean if self.utility is None else (p * exponents).sum(-1)
        variance = (p * (returns - mean[:, None]).square()).sum(-1)
        return Tilted(moment, (gain - moment).clamp(min=0), mean, variance)

    @property
    def utility_mean(self) -> Tensor:
        """E u(R) of every candidate, [n]."""
        u = self.returns if self.utility is None else self.utility[self.row]
        return (self.log_p.exp() * u).sum(-1)


def root(
    f: Callable[[Tensor], Tensor],
    target: Tensor,
    low: Tensor | None = None,
    high: Tensor | None = None,
) -> Tensor:
    """x in [low, high] with f(x) = target for an increasing f, [rows] → [rows].

    The default is [0, MAX_BETA]. `low` where f starts above the target, `high` where it never
    reaches it. By the Illinois method: the secant of a bracket, whose older end counts half if it
    stays. It evaluates f about 6 times in a bracket of a tenth of x, and 10 to 20 in the default.
    """
    old = torch.zeros_like(target) if low is None else low
    new = torch.full_like(target, MAX_BETA) if high is None else high
    before, after = f(old) - target, f(new) - target
    moves = (before < 0) & (after > 0)  # each row ends by itself, whatever its neighbours do
    x = torch.where(before >= 0, old, new)
    for _ in range(MOST):
        secant = new - after * (new - old) / (after - before)
        last, x = x, torch.where(moves, secant, x)
        moves &= (x - last).abs() > TOLERANCE * x.abs()
        if not moves.any():
            break
        value = f(x) - target
        same = value.sign() == after.sign()
        old, before = torch.where(same, old, new), torch.where(same, before / 2, after)
        new, after = x, value
    return x


def root_reference(
    f: Callable[[Tensor], Tensor], target: Tensor, low: Tensor, high: Tensor
) -> Tensor:
    """The same by bisection."""
    start, end = f(low) >= target, f(high) < target
    low, high = torch.where(end, high, low), torch.where(start, low, high)
    for _ in range(64):
        middle = (low + high) / 2
        below = f(middle) < target
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return high
