"""η of CVaR: the return below which the worst share a of the guided answers lie.

    max_π CVaR_a(R) − KL(π ‖ π0)/c  =  max_η (1/c)·log E_π0 exp(c·u_η(R)),   u_η of trimtab.utility

since CVaR_a(R) = max_η E u_η(R). Some bin is a best η: for a fixed π, a quantile is, and the best π
for it is no worse. So all bins are tried. With a negative strength c, the aim is a low CVaR, and η
gives the lowest E exp(c·u_η): c·u_η is convex in η, so that maximum and minimum change places; here
the bins are an approximation.

η is solved at the first scored step of an answer, and then kept: solved anew at each prefix, it
would make a lucky answer worry about its own worst share. Two things are approximated: other
scorers are left out, and the tail is taken to be as the candidates.
"""

import torch
from torch import Tensor

from trimtab.candidates import Candidates
from trimtab.outlook import Outlook
from trimtab.utility import levels


def eta(row: int, share: float, c: float, outlook: Outlook, candidates: Candidates) -> float:
    """η of a row at strength c; with c = 0 the quantile of the base.

    candidates: float64, on the host.
    """
    log_p = mixture(row, outlook, candidates)
    values = [value(float(x), share, c, log_p, outlook.returns) for x in outlook.returns]
    return float(outlook.returns[max(range(len(values)), key=values.__getitem__)])


def mixture(row: int, outlook: Outlook, candidates: Candidates) -> Tensor:
    """log p(R | prefix) of a row in the base, over its candidates, [bins]."""
    own = outlook.row == row
    log_pi0 = candidates.logprobs[row, outlook.place[own]].log_softmax(-1)
    return (log_pi0[:, None] + outlook.log_p[own]).logsumexp(0)


def value(at: float, share: float, c: float, log_p: Tensor, returns: Tensor) -> float:
    """What η = `at` gives: sign(c)·log E exp(c·u_η(R)), and E u_η(R) for c = 0."""
    u = levels({"cvar": share}, returns, at)
    if c == 0:
        return float(log_p.exp() @ u)
    moment = float(torch.logsumexp(log_p + c * u, 0))
    return moment if c > 0 else -moment
