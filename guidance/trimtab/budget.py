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
from trimtab.fusion import divergence, tilted
from trimtab.outlook import Outlook, root
from trimtab.params import MAX_BETA
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

    @classmethod
    def of(cls, plans: Sequence[StepPlan]) -> "Purse":
        """The purses of a step's plans."""
        names = ("left", "before", "unit", "cut", "behind", "ahead")
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
) -> Forecast:
    """What β costs, beta: [rows] ≥ 0.

    With a tail that is not cut, the KL after its tokens is taken to be the mean of the candidates',
    as their score is.
    """
    bonus = torch.zeros_like(candidates.logprobs)
    rest = torch.zeros_like(candidates.logprobs)
    blind = torch.zeros(len(beta), dtype=torch.bool)
    for outlook in outlooks:
        at = outlook.row, outlook.place
        moment, kl = outlook.tilt((beta * outlook.weight)[outlook.row])
        bonus.index_put_(at, moment, accumulate=True)
        rest.index_put_(at, kl, accumulate=True)
        blind[outlook.row] |= not outlook.foresees
    step, _ = divergence(candidates, bonus, tail_mean)
    rest = torch.cat((rest, candidates.mean(rest)[:, None]), 1)
    foreseen = (tilted(candidates, bonus, tail_mean) * rest).sum(-1)
    cuts = torch.where(tail_mean, 0.0, purse.cut)  # too dear now, they are so from here on
    rate = (beta.square() * purse.unit + cuts + step) / (purse.behind + 1)
    paced = torch.where(rate > 0, (purse.ahead - 1) * rate, 0.0)  # [rows], never 0·inf
    cost = step + torch.where(blind, paced, foreseen)
    after = torch.where(blind, purse.left - step, purse.left - cost)[:, None]
    return Forecast(cost, after + rest.masked_fill(blind[:, None], 0.0))


def spend(
    purse: Purse, outlooks: Sequence[Outlook], candidates: Candidates, tail_mean: Tensor
) -> tuple[Tensor, Tensor]:
    """β of each row, [rows], and the nats left after each token, [rows, k + 1], as in Forecast.

    β is 0 where cutting the tail alone costs more than what is left.
    """

    def cost(beta: Tensor) -> Tensor:
        return forecast(beta, purse, outlooks, candidates, tail_mean).cost

    first = purse.before == 0
    low = torch.where(first, 0.0, purse.before / PACE)
    high = torch.where(first, MAX_BETA, purse.before * PACE).clamp(max=MAX_BETA)
    beta = root(cost, purse.left, low, high)
    return beta, forecast(beta, purse, outlooks, candidates, tail_mean).after
