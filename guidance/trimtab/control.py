"""Strengths that follow a target: β from a KL budget, a scorer's own from a floor on its mean.

Both read the return distributions p(R | prefix + v) of a step's candidates. Tilted by a strength c,

    p_c ∝ p·exp(c·R),   Λ(c) = log E_p exp(c·R),   K(c) = KL(p_c ‖ p) = c·E_{p_c}[R] − Λ(c)

Guidance at c from some prefix onwards turns p into p_c, and costs K(c) nats for the rest of the
answer: by the chain rule, K at the prefix is this step's KL plus the mean of K after it.

Budget B. With "left" nats to spend, β is the root of

    KL(π_β ‖ π0 | prefix) + E_{v ~ π_β} Σ_i K(β·w_i | prefix + v) = left

(several returns are taken as independent of each other after this step). While distributions agree
from step to step the root stays what it was, which is optimal: an answer that is already doing well
spends less. They do not quite agree, and an answer whose β jumps about gains less than one whose β
stays; so β goes from step to step by a factor of `PACE` at most. What is then left after v is

    Σ_i K(β·w_i | prefix + v) + (left − what this β was expected to cost)

so that spent + left is a martingale, right or wrong as the distributions may be, and an answer
misses its budget in the mean by what is left when it ends. The sum is kept within `BAND` of B, so
that no answer spends more than (1 + BAND)·B. Where all that can still be had costs less than what
is left, β is on its way to MAX_BETA.

Floor f. The scorer's strength is the least c ≥ 0 whose tilted mean reaches f, with p the mixture
of the candidates, Σ_v π0(v)·p(R | prefix + v) / π0(C): the dual weight of E[R] ≥ f, 0 once the base
alone is expected to reach it (constrained RLHF's answer to over-optimisation, Moskovitz et al.,
arXiv 2310.04373). The budget is eq. 1 of VAS.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.candidates import Candidates
from trimtab.fusion import divergence
from trimtab.params import MAX_BETA
from trimtab.rows import Row, StepPlan

BAND = 3.0
"""How far the expected KL of an answer may come to stand from its budget, as a share of it.

The luck of one answer is no error: a narrow band cuts the dear answers off, the cheap ones cannot
spend the difference, and the mean falls short (by 20 to 40 % at 0.1 on the tiny world, by 3 to 8 %
at 1 on reviews)."""

PACE = 1.05
"""Most that β may change by from one scored step of an answer to the next, as a factor.

On reviews, 4 nats: a free β gains 0.02 to 0.05 less than a fixed one, this one as much."""

HALVINGS = 32


@dataclass(frozen=True)
class Outlook:
    """One scorer's return distributions of a step's candidates, packed; float64, on the host."""

    log_p: Tensor  # [n, bins]
    returns: Tensor  # [bins]
    row: Tensor  # [n] int64, which row a candidate is of
    place: Tensor  # [n] int64, which of its candidates
    weight: Tensor  # [rows], w_i; what β multiplies

    def tilt(self, c: Tensor) -> tuple[Tensor, Tensor]:
        """Λ(c) and K(c) of every candidate, each [n]; c: [n]."""
        exponents = self.log_p + c[:, None] * self.returns
        moment = exponents.logsumexp(-1)
        mean = (exponents - moment[:, None]).exp() @ self.returns
        return moment, (c * mean - moment).clamp(min=0)


def follow(
    rows: Sequence[Row], outlooks: Mapping[str, Outlook], candidates: Candidates, tail_mean: Tensor
) -> None:
    """Fill in the plans of this step's rows; those with one candidate or a fault have no outlook.

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
                plan.after = dict(
                    zip(candidates.tokens[r].tolist(), after[r].tolist(), strict=True)
                )
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
    """KL of the whole rest of the answer, [rows], and what of it remains after each candidate.

    beta: [rows] ≥ 0. The second is [rows, k] nats. Tokens of a tail that is not cut count as the
    mean of the candidates.
    """
    bonus = torch.zeros_like(candidates.logprobs)
    after = torch.zeros_like(candidates.logprobs)
    for outlook in outlooks:
        at = outlook.row, outlook.place
        moment, kl = outlook.tilt((beta * outlook.weight)[outlook.row])
        bonus.index_put_(at, moment, accumulate=True)
        after.index_put_(at, kl, accumulate=True)
    step, _ = divergence(candidates, bonus, tail_mean)
    tilted = (candidates.logprobs + bonus).masked_fill(~candidates.real, -torch.inf).softmax(-1)
    return step + (tilted * after).sum(-1), after


def budget(
    left: Tensor,
    before: Tensor,
    outlooks: Sequence[Outlook],
    candidates: Candidates,
    tail_mean: Tensor,
) -> tuple[Tensor, Tensor]:
    """β of each row that has so many nats left, [rows], and what is left after each candidate.

    before: [rows] β of the step before, 0 where there was none. β is 0 where not even the cut of
    the tail can be paid.
    """

    def cost(beta: Tensor) -> Tensor:
        return prospect(beta, outlooks, candidates, tail_mean)[0]

    free = root(cost, left)
    beta = torch.where(before > 0, free.clamp(before / PACE, before * PACE), free)
    beta = beta.clamp(max=MAX_BETA)
    total, after = prospect(beta, outlooks, candidates, tail_mean)
    return beta, after + (left - total)[:, None]


def dual(floors: Tensor, outlook: Outlook, candidates: Candidates) -> Tensor:
    """Least strength at which each row's expected return reaches its floor, [rows]."""
    log_pi0 = candidates.logprobs.masked_fill(~candidates.real, -torch.inf).log_softmax(-1)
    weights = log_pi0[outlook.row, outlook.place].exp()
    mixture = torch.zeros(len(floors), len(outlook.returns), dtype=weights.dtype)
    mixture.index_add_(0, outlook.row, weights[:, None] * outlook.log_p.exp())

    def mean(c: Tensor) -> Tensor:
        tilted = (mixture.log() + c[:, None] * outlook.returns).softmax(-1)
        return tilted @ outlook.returns

    return root(mean, floors, above=True)


def root(f: Callable[[Tensor], Tensor], target: Tensor, *, above: bool = False) -> Tensor:
    """x in [0, MAX_BETA] with f(x) = target for a rising f, by halving; [rows] → [rows].

    0 where f starts above the target, MAX_BETA where it never reaches it. Of the last bracket the
    lower end is taken, or the upper one if f may not stay below the target.
    """
    low, high = torch.zeros_like(target), torch.full_like(target, MAX_BETA)
    low = torch.where(f(high) < target, high, low)
    high = torch.where(f(torch.zeros_like(target)) >= target, 0.0, high)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        below = f(middle) < target
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return high if above else low
