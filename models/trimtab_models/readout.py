"""From the outputs of a head to scores: links, and the soft value of a histogram over returns."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from trimtab_models.info import Link
from trimtab_models.transfers import upload

LINKS: dict[Link, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "sigmoid": torch.sigmoid,
    "log_sigmoid": logsigmoid,
}
"""From a head's output to a score: the output, a probability, or its logarithm (FUDGE)."""

NEGLIGIBLE = 1e-6
"""Below this |c| times the support's width, s_c is the mean to within float32's rounding."""

FAR = 40.0
"""Above this, the probabilities that exp(c·R) makes count may be too small for float32."""


def cautious(values: Tensor, cautions: Tensor) -> Tensor:
    """mean_i V_i − λ·spread of an ensemble's values, in float32.

    The spread is their standard deviation, with n − 1 in the denominator.

    Args:
        values: [..., heads], at least two heads.
        cautions: λ, of shape [...] or [].

    Returns:
        [...]
    """
    values = values.float()
    return values.mean(-1) - cautions * values.std(-1)


def soft_value(logits: Tensor, returns: Tensor, strengths: Tensor) -> Tensor:
    """s_c = (1/c)·log Σ_b p_b·exp(c·R_b) of each histogram, and s_0 = Σ_b p_b·R_b, in float32.

    Returns are measured from the histogram's mean m. Where c is small, log E exp(c·(R − m)) is near
    0 and is then divided by c, so it is computed from E expm1, which keeps all its digits.

    Args:
        logits: [..., bins], before the softmax.
        returns: [bins].
        strengths: c, of shape [...] or [].

    Returns:
        [...]
    """
    log_p = logits.float().log_softmax(-1)
    returns = returns.float()
    p = log_p.exp()
    mean = p @ returns  # [...]
    size = strengths.abs() * (returns.max() - returns.min())
    c = torch.where(size < NEGLIGIBLE, 1.0, strengths)
    exponents = c[..., None] * (returns - mean[..., None])  # [..., bins]
    small = torch.log1p((p * torch.expm1(exponents)).sum(-1))
    large = (log_p + exponents).logsumexp(-1)
    above = torch.where(size < 1, small, large) / c
    return mean + torch.where(size < NEGLIGIBLE, 0.0, above)


def soft_value_at(logits: Tensor, returns: Tensor, c: float) -> Tensor:
    """`soft_value` of many histograms at one strength, [bins, n] → [n].

    With R_0 the lowest return, or the highest if c is negative, it is

        s_c = R_0 + (1/c)·log(1 + Σ_b p_b·(exp(c·(R_b − R_0)) − 1))

    No term is negative, so no digits are lost where c is small. The factors of p are the same for
    all histograms, so this is one product. Bins come first: then n is contiguous, and whole
    vocabularies take a tenth of the time of `soft_value`.

    Args:
        logits: [bins, n], before the softmax.
        returns: [bins], rising, on the host.
        c: the strength.
    """
    logits, returns = logits.float(), returns.float()
    size = abs(c) * float(returns[-1] - returns[0])
    if size < NEGLIGIBLE:
        return upload(returns, logits.device) @ logits.softmax(0)
    start = float(returns[0] if c > 0 else returns[-1])
    exponents = c * (returns - start)  # [bins], from 0 to size
    if size > FAR:
        tilted = logits.log_softmax(0) + upload(exponents, logits.device)[:, None]
        return start + tilted.logsumexp(0) / c
    factors = upload(exponents.expm1(), logits.device)
    return start + torch.log1p(factors @ logits.softmax(0)) / c


def soft_value_reference(p: Sequence[float], returns: Sequence[float], c: float) -> float:
    """The definition, for one histogram, in double precision."""
    if c == 0:
        return math.fsum(q * r for q, r in zip(p, returns, strict=True))
    return math.log(math.fsum(q * math.exp(c * r) for q, r in zip(p, returns, strict=True))) / c
