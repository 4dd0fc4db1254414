"""Strengths that follow a target: β from a KL budget, a scorer's own from a floor on its mean.

Both use the return distributions p(R | prefix + v) of a step's candidates. Tilted by a strength c,

    p_c ∝ p·exp(c·R),   Λ(c) = log E_p exp(c·R),   K(c) = KL(p_c ‖ p) = c·E_{p_c}[R] − Λ(c)

Guidance at strength c after some prefix turns p into p_c and costs K(c) nats for the rest of the
answer: by the chain rule, K at the prefix is this step's KL plus the mean of K after it.

Budget B. With "left" nats remaining, β is the root of

    KL(π_β ‖ π0 | prefix) + E_{v ~ π_β} Σ_i K(β·w_i | prefix + v) = left

(several returns are treated as independent after this step). While the distributions agree from
step to step, the root does not change. This is optimal: an answer that already does well spends
less. In fact they differ a little, and an answer with a varying β gains less than one with a
constant β; so β changes by at most a factor of `PACE` per step. After v, the remaining nats are

    Σ_i K(β·w_i | prefix + v) + (left − expected cost of this β)

so spent + left is a martingale, whether or not the distributions are right, and on average an
answer misses its budget by what is left when it ends. The sum is kept within `BAND`·B of B, so no
answer spends more than (1 + BAND)·B. If the highest possible cost is less than what is left, β
moves towards MAX_BETA.

Where the tail is cut, the cut's −log π0(candidates) is part of this step's KL, so it is paid first,
and β has the rest. A cut that costs more than `SHARE` of what is left is not made: at that step the
tail gets the mean.

Floor f. The scorer's strength is the smallest c ≥ 0 whose tilted mean reaches f, where p is the
mixture over the candidates, Σ_v π0(v)·p(R | prefix + v) / π0(C). It is the dual weight of E[R] ≥ f,
and 0 once the base alone is expected to reach f (constrained RLHF's answer to over-optimisation,
Moskovitz et al., arXiv 2310.04373). The budget is eq. 1 of VAS.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.candidates import Candidates
from trimtab.fusion import divergence, tilted
from trimtab.params import MAX_BETA
from trimtab.rows import Row, StepPlan

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

BISECTIONS = 32


@dataclass(frozen=True)
class Outlook:
    """One scorer's return distributions for a step's candidates, packed; float64, on the host."""

    log_p: Tensor  # [n, bins]
    returns: Tensor  # [bins]
    row: Tensor  # [n] int64, row of each candidate
    place: Tensor  # [n] int64, index of the candidate in its row
    weight: Tensor  # [rows], w_i, the factor of β

    def tilt(self, c: Tensor) -> tuple[Tensor, Tensor]:
        """Λ(c) and K(c) of every candidate, each [n]; c: [n]."""
        exponents = self.log_p + c[:, None] * self.returns
        moment = exponents.logsumexp(-1)
        mean = (exponents - moment[:, None]).exp() @ self.returns
        return moment, (c * mean - moment).clamp(min=0)


def follow(
    rows: Sequence[Row], outlooks: Mapping[str, Outlook], candidates: Candidates, tail_mean: Tensor
) -> None:
    """Fill in the plans of this step's rows; rows with one candidate or a fault have no outlook.

    candidates: float64, on the host.
    """
    plans = [row.plan or StepPlan() for row in rows]
    left = torch.tensor([plan.left for plan in plans], dtype=torch.float64)
    before = torch.tensor([plan.before for plan in plans], dtype=torch.float64)
    seen = {r for outlook in outlooks.values() for r in outlook.row.tolist()}
    if any(rows[r].params.kl_budget is not None for r in seen):
        betas, after = budget(left, before, list(outlooks.values()), candidates, tail_mean)
        for r in seen:
            plan = rows[r].plan
            if plan is not None and rows[r].params.kl_budget is not None:
                plan.beta = float(betas[r])
                n = int(candidates.counts[r])
                tokens, nats = candidates.tokens[r, :n].tolist(), after[r].tolist()
                plan.after, plan.rest = dict(zip(tokens, nats[:n], strict=True)), nats[-1]
    for name, outlook in outlooks.items():
        floors = torch.tensor([(row.params.floors or {}).get(name, -math.inf) for row in rows])
        duals = dual(floors.double(), outlook, candidates)
        for r in outlook.row.unique().tolist():
            plan = rows[r].plan
            if plan is not None and name in (rows[r].params.floors or {}):
                plan.duals[name] = float(duals[r])


def prospect(
    beta: Tensor, outlooks: Sequence[Outlook], candidates: Candidates, tail_mean: Tensor
) -> tuple[Tensor, Tensor]:
    """Expected KL of the rest of the answer, [rows], and its part after each token, [rows, k + 1].

    beta: [rows] ≥ 0. Both results are in nats. The last column is for all other tokens: with a
    tail that is not cut, their KL is taken to be the mean of the candidates', as their score is.
    """
    bonus = torch.zeros_like(candidates.logprobs)
    after = torch.zeros_like(candidates.logprobs)
    for outlook in outlooks:
        at = outlook.row, outlook.place
        moment, kl = outlook.tilt((beta * outlook.weight)[outlook.row])
        bonus.index_put_(at, moment, accumulate=True)
        after.index_put_(at, kl, accumulate=True)
    step, _ = divergence(candidates, bonus, tail_mean)
    after = torch.cat((after, candidates.mean(after)[:, None]), 1)
    return step + (tilted(candidates, bonus, tail_mean) * after).sum(-1), after


def budget(
    left: Tensor,
    before: Tensor,
    outlooks: Sequence[Outlook],
    candidates: Candidates,
    tail_mean: Tensor,
) -> tuple[Tensor, Tensor]:
    """β of each row, [rows], and the nats left after each token, [rows, k + 1], as in prospect.

    left: [rows] nats. before: [rows] β of the previous step, 0 if there was none. β is 0 where
    cutting the tail alone costs more than what is left.
    """

    def cost(beta: Tensor) -> Tensor:
        return prospect(beta, outlooks, candidates, tail_mean)[0]

    free = root(cost, left)
    beta = torch.where(before > 0, free.clamp(before / PACE, before * PACE), free)
    beta = beta.clamp(max=MAX_BETA)
    total, after = prospect(beta, outlooks, candidates, tail_mean)
    return beta, after + (left - total)[:, None]


def dual(floors: Tensor, outlook: Outlook, candidates: Candidates) -> Tensor:
    """Smallest strength at which each row's expected return reaches its floor, [rows]."""
    log_pi0 = candidates.logprobs.masked_fill(~candidates.real, -torch.inf).log_softmax(-1)
    weights = log_pi0[outlook.row, outlook.place].exp()
    mixture = torch.zeros(len(floors), len(outlook.returns), dtype=weights.dtype)
    mixture.index_add_(0, outlook.row, weights[:, None] * outlook.log_p.exp())

    def mean(c: Tensor) -> Tensor:
        tilted = (mixture.log() + c[:, None] * outlook.returns).softmax(-1)
        return tilted @ outlook.returns

    return root(mean, floors, above=True)


def root(f: Callable[[Tensor], Tensor], target: Tensor, *, above: bool = False) -> Tensor:
    """x in [0, MAX_BETA] with f(x) = target for an increasing f, by bisection; [rows] → [rows].

    0 where f starts above the target, MAX_BETA where it never reaches it. Returns the lower end of
    the last bracket, or the upper end if `above`.
    """
    low, high = torch.zeros_like(target), torch.full_like(target, MAX_BETA)
    low = torch.where(f(high) < target, high, low)
    high = torch.where(f(torch.zeros_like(target)) >= target, 0.0, high)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        below = f(middle) < target
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return high if above else low
