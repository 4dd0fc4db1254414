"""A step and what follows it, at given strengths: its policy, its cost, and each scorer's mean.

The bonus of a candidate is Σ_i Λ_i, one term for each scorer. After this step, scorers are treated
as independent: each turns its own return distribution into the tilted one (trimtab.outlook). With

    Φ = log Σ_v π0(v)·exp(Σ_i Λ_i(v)),   v a candidate or the tail

the mean return of scorer i is ∂Φ/∂d_i = Σ_v π(v)·E[R_i | v], d_i being the strength on R_i itself;
Φ is convex in d. The tail, if it is not cut, has the mean of the candidates' Λ, and so the mean of
their means.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.candidates import Candidates
from trimtab.fusion import divergence, tilted
from trimtab.outlook import Outlook


@dataclass(frozen=True)
class Prospect:
    """What strengths make of a step; the last place of k + 1 is any other token's."""

    policy: Tensor  # [rows, k + 1], π
    step: Tensor  # [rows], this step's KL in nats
    phi: Tensor  # [rows], Φ
    rest: Tensor  # [rows, k + 1], nats of all later steps after each token
    parts: Tensor  # [scorers, rows, k], Λ of each scorer
    means: Tensor  # [scorers, rows, k + 1], E[R_i | v] under all later steps
    variances: Tensor  # [scorers, rows, k + 1], ∂²Λ/∂d²

    @property
    def mean(self) -> Tensor:
        """Each scorer's mean return under the policy, [rows, scorers]: ∂Φ/∂d."""
        return (self.policy * self.means).sum(-1).T

    @property
    def curvature(self) -> Tensor:
        """∂²Φ/∂d², [rows, scorers, scorers]."""
        apart = self.means - self.mean.T[..., None]
        shared = torch.einsum("rk,irk,jrk->rij", self.policy, apart, apart)
        return shared + torch.diag_embed((self.policy * self.variances).sum(-1).T)


def prospect(
    beta: Tensor,
    duals: Tensor,
    outlooks: Sequence[Outlook],
    candidates: Candidates,
    tail_mean: Tensor,
) -> Prospect:
    """At β, [rows], and strengths d on the returns themselves, [rows, scorers].

    candidates: float64, on the host. tail_mean: [rows] bool.
    """
    bonus = torch.zeros_like(candidates.logprobs)
    rest = torch.zeros_like(bonus)
    parts, means, variances = (bonus.new_zeros(len(outlooks), *bonus.shape) for _ in range(3))
    for i, outlook in enumerate(outlooks):
        at = outlook.row, outlook.place
        c, d = (beta * outlook.weight)[outlook.row], duals[outlook.row, i]
        own = outlook.tilt(c, d)
        bonus.index_put_(at, own.moment, accumulate=True)
        rest.index_put_(at, own.kl, accumulate=True)
        parts[i].index_put_(at, own.moment)
        means[i].index_put_(at, own.mean)
        variances[i].index_put_(at, own.variance)
    step, phi = divergence(candidates, bonus, tail_mean)
    return Prospect(
        tilted(candidates, bonus, tail_mean),
        step,
        phi,
        with_tail(candidates, rest),
        parts,
        with_tail(candidates, means),
        with_tail(candidates, variances),
    )


def with_tail(candidates: Candidates, values: Tensor) -> Tensor:
    """Values with the candidates' mean as the tail's: [..., rows, k] → [..., rows, k + 1]."""
    return torch.cat((values, candidates.mean(values)[..., None]), -1)
