"""β of each step from a KL budget: the constant β whose cost is expected to be the budget.

With "left" nats remaining, β is the root of

    KL(π_β ‖ π0 | prefix) + later(β) = left

Return distributions that are certain at the end of an answer foresee what the later steps cost, see
trimtab.outlook:

    later(β) = E_{v ~ π_β} Σ_i K(β·w_i | prefix + v)

(several returns are treated as independent after this step). While the distributions agree from
step to step, the root does not change, and this is optimal: an answer that already does well spends
less. Other scorers do not foresee it: plain scores, and distributions that never learn the return,
which would count what they never learn as future cost. Then the answer's own steps so far tell what
the tokens ahead cost at the same rate,

    later(β) = (ahead − 1)·(β²·Σ_past KL/β_past² + Σ_past cuts + KL now) / (behind + 1)

since a step's KL is β²·Var(s)/2 for small β. "ahead" is what `max_tokens` leaves, this token
included, so an answer that ends early leaves nats unspent.

A β that varies gains less than a constant one, so β changes by at most a factor of `PACE` per step.
After token v, the remaining nats are left − KL now; or, if scorers foresee,

    Σ_i K(β·w_i | prefix + v) + (left − expected cost of this β)

Either way spent + left is a martingale, whether or not the forecast is right, and on average an
answer misses its budget by what is left when it ends. The sum is kept within `BAND`·B of B, so no
answer spends more than (1 + BAND)·B. If the highest possible cost is less than what is left, β
moves towards MAX_BETA.

With floors or ceilings, each β has the strengths that keep them at this β (trimtab.duals), and its
cost is that of both. It rises with β from the cost of the bounds alone. If that is already more
than what is left, β is 0 and the bounds' strengths are scaled down until they cost what is left:
the budget is the harder limit.

Where the tail is cut, the cut's −log π0(candidates) is part of a step's KL, so it is paid first,
and β has the rest. A cut that costs more than `SHARE` of what is left is not made: at that step the
tail gets the mean.

The budget is eq. 1 of VAS.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.candidates import Candidates
from trimtab.duals import Bounds, solve
from trimtab.outlook import Outlook, root
from trimtab.params import MAX_BETA
from trimtab.prospect import prospect
from trimtab.rows import StepPlan

BAND = 3.0
"""Maximum distance of an answer's expected KL from its budget, as a share of the budget.

A narrow band stops expensive answers, but cheap answers cannot spend the difference, so the mean
falls short (by 20 to 40 % at 0.1 on the tiny world, by 3 to 8 % at 1 on reviews)."""

PACE = 1.05
"""Maximum factor by which β changes from one scored step of an answer to the next.

On reviews, 4 nats: an unlimited β gains 0.02 to 0.05 less than a fixed one; this β gains as much.
"""

SHARE = 0.05
"""Maximum cost of cutting the tail at a step, as a share of the nats left.

More, at step after step, would lower what is left for steering faster than β follows at its pace:
answers would exceed their budget."""


@dataclass(frozen=True)
class Purse:
    """What the rows of a step may spend, and how they have spent so far; each [rows] float64."""

    left: Tensor  # nats for this step and all later ones
    before: Tensor  # β of the last step that had one, 0 if none had
    unit: Tensor  # Σ of the earlier steps' KL/β², without the cuts
    cut: Tensor  # nats that earlier cuts of the tail cost
    behind: Tensor  # tokens of the answer so far
    ahead: Tensor  # tokens that may follow, at least 1; inf if unknown
    flat: Tensor | float = 0.0  # nats of the earlier steps with β = 0, for bounds alone

    @classmethod
    def of(cls, plans: Sequence[StepPlan]) -> "Purse":
        """The purses of a step's plans."""
        names = ("left", "before", "unit", "cut", "behind", "ahead", "flat")
        columns = [[float(getattr(plan, name)) for plan in plans] for name in names]
        return cls(*torch.tensor(columns, dtype=torch.float64))


@dataclass(frozen=True)
class Forecast:
    """Nats that a β costs, and what it leaves."""

    cost: Tensor  # [rows], of this step and all later ones
    after: Tensor  # [rows, k + 1], nats left after each candidate, and after any other token


def forecast(
    beta: Tensor,
    purse: Purse,
    outlooks: Sequence[Outlook],
    candidates: Candidates,
    tail_mean: Tensor,
    duals: Tensor | None = None,
) -> Forecast:
    """What β costs, beta: [rows] ≥ 0; duals: beside it, [rows, scorers], none by default.

    With a tail that is not cut, the KL after its tokens is taken to be the mean of the candidates',
    as their score is.
    """
    if duals is None:
        duals = beta.new_zeros(len(beta), len(outlooks))
    blind = torch.zeros(len(beta), dtype=torch.bool)
    for outlook in outlooks:
        blind[outlook.row] |= not outlook.foresees
    made = prospect(beta, duals, outlooks, candidates, tail_mean)
    foreseen = (made.policy * made.rest).sum(-1)
    cuts = torch.where(tail_mean, 0.0, purse.cut)  # too dear now, they are so from here on
    past = beta.square() * purse.unit + cuts + purse.flat
    rate = (past + made.step) / (purse.behind + 1)
    paced = torch.where(rate > 0, (purse.ahead - 1) * rate, 0.0)  # [rows], never 0·inf
    cost = made.step + torch.where(blind, paced, foreseen)
    after = torch.where(blind, purse.left - made.step, purse.left - cost)[:, None]
    return Forecast(cost, after + made.rest.masked_fill(blind[:, None], 0.0))


def spend(
    purse: Purse,
    outlooks: Sequence[Outlook],
    candidates: Candidates,
    tail_mean: Tensor,
    bounds: Bounds | None = None,
    start: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """β of each row, [rows]; the strengths of its bounds, [rows, scorers]; and the nats left after
    each token, [rows, k + 1], as in Forecast.

    β is 0 where cutting the tail alone costs more than what is left. start: a first guess of the
    strengths.
    """
    duals = purse.left.new_zeros(len(purse.left), len(outlooks))
    bounded = torch.zeros(len(duals), dtype=torch.bool)
    if bounds is not None:
        bounded = (bounds.most > bounds.least).any(-1)
        duals = duals if start is None else start

    def strengths(x: Tensor) -> tuple[Tensor, Tensor]:
        """β = x with the strengths for it; below 0, those for β = 0 times 1 + x."""
        nonlocal duals
        beta = x.clamp(min=0)
        if bounds is None or not bounded.any():
            return beta, duals
        duals = solve(beta, bounds, duals, outlooks, candidates, tail_mean)
        return beta, duals * (1 + x.clamp(max=0))[:, None]

    def cost(x: Tensor) -> Tensor:
        beta, own = strengths(x)
        return forecast(beta, purse, outlooks, candidates, tail_mean, own).cost

    first = purse.before == 0
    low = torch.where(first, torch.where(bounded, -1.0, 0.0), purse.before / PACE)
    high = torch.where(first, MAX_BETA, purse.before * PACE).clamp(max=MAX_BETA)
    beta, own = strengths(root(cost, purse.left, low, high))
    after = forecast(beta, purse, outlooks, candidates, tail_mean, own).after
    return beta, own, after
