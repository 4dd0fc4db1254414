"""A scorer's own strength, from a floor on its mean return.

Floor f. The scorer's strength is the smallest c ≥ 0 whose tilted mean reaches f, where p is the
mixture over the candidates, Σ_v π0(v)·p(R | prefix + v) / π0(C). It is the dual weight of E[R] ≥ f,
and 0 once the base alone is expected to reach f (constrained RLHF's answer to over-optimisation,
Moskovitz et al., arXiv 2310.04373).
"""

import torch
from torch import Tensor

from trimtab.candidates import Candidates
from trimtab.outlook import Outlook, root


def dual(floors: Tensor, outlook: Outlook, candidates: Candidates) -> Tensor:
    """Smallest strength at which each row's expected return reaches its floor, [rows]."""
    log_pi0 = candidates.logprobs.masked_fill(~candidates.real, -torch.inf).log_softmax(-1)
    weights = log_pi0[outlook.row, outlook.place].exp()
    mixture = torch.zeros(len(floors), len(outlook.returns), dtype=weights.dtype)
    mixture.index_add_(0, outlook.row, weights[:, None] * outlook.log_p.exp())

    def mean(c: Tensor) -> Tensor:
        tilted = (mixture.log() + c[:, None] * outlook.returns).softmax(-1)
        return tilted @ outlook.returns

    return root(mean, floors)
