"""Dual weights of floors and ceilings, which the guided policy meets, all of a row together.

A floor f_i is E[R_i] ≥ f_i, a ceiling g_i is E[R_i] ≤ g_i. Of all policies that keep them, the one
with the highest β·Σ w_i·E[u_i] − KL has a strength d_i on each bounded return beside β·w_i on its
utility. With Φ(d) of trimtab.prospect, whose gradient is the mean returns, the d are those of

    min_d  Φ(d) − Σ_i (f_i·d_i if d_i > 0, g_i·d_i if d_i < 0)

which is convex: d_i > 0 only where the floor holds with equality, d_i < 0 only where the ceiling
does. |d_i| is at most MAX_BETA, which a bound that is out of reach gets. Source: the Lagrangian of
constrained RLHF (Moskovitz et al., arXiv 2310.04373), solved at each step instead of trained.

**Over an answer.** The bounds hold for the mean over answers, so an answer may be lucky. After
token v, the bound of the rest moves as the mean does: with m_i = E_π[R_i] of the step,

    bound_i(prefix + v) = bound_i(prefix) + E[R_i | prefix + v] − m_i        ("luck")

whose mean is the bound again, whatever the scorers predict and however they depend on each other.
What other scorers did to R_i in a step is seen in the next one, and made good there. So E[R_i] is
the floor, if d_i is positive at the last step that matters, and within reach. With exact
distributions of one scorer, d does not change from step to step, and this is the exact optimum.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.candidates import Candidates
from trimtab.outlook import MOST, TOLERANCE, Outlook
from trimtab.params import MAX_BETA
from trimtab.prospect import Prospect, prospect

RIDGE = 1e-12
"""Least curvature, relative to the returns' scale: below it a strength changes nothing."""
ROUNDING = 1e-12
"""Relative error of the objective, below which a step counts as none the worse."""
HALVINGS = 40


@dataclass(frozen=True)
class Bounds:
    """What the means must keep, at these prefixes; each [rows, scorers] float64."""

    low: Tensor  # floors, −inf where there is none
    high: Tensor  # ceilings, inf where there is none

    @property
    def most(self) -> Tensor:
        """The largest strengths."""
        return torch.where(self.low > -torch.inf, MAX_BETA, 0.0).double()

    @property
    def least(self) -> Tensor:
        """The lowest strengths."""
        return torch.where(self.high < torch.inf, -MAX_BETA, 0.0).double()

    @property
    def any(self) -> bool:
        """Whether there is one."""
        return bool((self.most > self.least).any())

    def only(self, rows: Tensor) -> "Bounds":
        """Those of some rows, [rows] bool."""
        some = rows[:, None]
        return Bounds(
            torch.where(some, self.low, -torch.inf), torch.where(some, self.high, torch.inf)
        )

    def excess(self, d: Tensor, mean: Tensor) -> Tensor:
        """The slope of the objective; at d = 0 that of the side that falls, or 0."""
        short, over = mean - self.low, mean - self.high
        level = short.clamp(max=0) + over.clamp(min=0)
        return torch.where(d > 0, short, torch.where(d < 0, over, level))

    def objective(self, d: Tensor, phi: Tensor) -> Tensor:
        """What the strengths minimise, [rows]."""
        up = torch.where(d > 0, d * self.low, 0.0)
        down = torch.where(d < 0, d * self.high, 0.0)
        return phi - (up + down).sum(-1)


def solve(
    beta: Tensor,
    bounds: Bounds,
    start: Tensor,
    outlooks: Sequence[Outlook],
    candidates: Candidates,
    tail_mean: Tensor,
) -> Tensor:
    """The strengths d of each row at β, [rows] → [rows, scorers]; start: a first guess.

    Newton's method on one side of 0 at a time, with the strengths that a bound holds left out, and
    steps halved until the objective falls.
    """

    def at(d: Tensor) -> Prospect:
        return prospect(beta, d, outlooks, candidates, tail_mean)

    d = start.clamp(bounds.least, bounds.most)
    now = at(d)
    value = bounds.objective(d, now.phi)
    moves = (bounds.most > bounds.least).any(-1)  # each row ends by itself
    for _ in range(MOST):
        slope = bounds.excess(d, now.mean)
        moves = moves & (slope != 0).any(-1)
        if not moves.any():
            break
        low = torch.where((d > 0) | ((d == 0) & (slope < 0)), 0.0, bounds.least)
        high = torch.where((d < 0) | ((d == 0) & (slope > 0)), 0.0, bounds.most)
        step = _newton(slope, now.curvature, d <= low, d >= high)
        size = torch.where(moves, 1.0, 0.0)[:, None]
        for _ in range(HALVINGS):
            there = (d + size * step).clamp(low, high)
            then = at(there)
            reached = bounds.objective(there, then.phi)
            worse = reached > value + ROUNDING * (1 + value.abs())
            if not worse.any():
                break
            size = torch.where(worse[:, None], size / 2, size)
        moves = moves & ((there - d).abs() > TOLERANCE * there.abs()).any(-1)
        d, now, value = there, then, reached
    return d


def _newton(slope: Tensor, curvature: Tensor, lowest: Tensor, highest: Tensor) -> Tensor:
    """The step of Newton's method, 0 where it would leave the box: [rows, scorers].

    lowest, highest: where d is at an end of its box, [rows, scorers] bool.
    """
    # First those that the bounds of the box hold, or they would drag others along.
    free = ((slope < 0) & ~highest) | ((slope > 0) & ~lowest)
    eye = torch.eye(slope.shape[1], dtype=slope.dtype)
    ridge = RIDGE * (1 + curvature.diagonal(dim1=1, dim2=2).amax(-1))[:, None, None]
    step = torch.zeros_like(slope)
    for _ in range(slope.shape[1] + 1):
        both = free[:, :, None] & free[:, None, :]
        matrix = (
            torch.where(both, curvature, 0.0)
            + torch.where(free, ridge[..., 0], 1.0)[..., None] * eye
        )
        step = -torch.linalg.solve(matrix, torch.where(free, slope, 0.0))
        leaves = free & ((lowest & (step < 0)) | (highest & (step > 0)))
        if not leaves.any():
            break
        free = free & ~leaves
    step = torch.where(free, step, 0.0)
    longest = step.abs().amax(-1, keepdim=True)  # far beyond the box where nothing curves
    return step * (2 * MAX_BETA / longest.clamp(min=2 * MAX_BETA))


def solve_reference(
    beta: Tensor,
    bounds: Bounds,
    outlooks: Sequence[Outlook],
    candidates: Candidates,
    tail_mean: Tensor,
    sweeps: int = 200,
) -> Tensor:
    """The same, one strength after another by bisection, until none changes."""
    d = torch.zeros_like(bounds.low)

    def excess(i: int, x: Tensor) -> Tensor:
        there = d.clone()
        there[:, i] = x
        mean = prospect(beta, there, outlooks, candidates, tail_mean).mean[:, i]
        return torch.where(x > 0, mean - bounds.low[:, i], mean - bounds.high[:, i])

    for _ in range(sweeps):
        before = d.clone()
        for i in range(d.shape[1]):
            low, high = bounds.least[:, i], bounds.most[:, i]
            for _ in range(60):
                middle = (low + high) / 2
                rises = excess(i, middle) < 0
                low, high = torch.where(rises, middle, low), torch.where(rises, high, middle)
            d[:, i] = middle
        if float((d - before).abs().max()) < TOLERANCE:
            break
    return d
