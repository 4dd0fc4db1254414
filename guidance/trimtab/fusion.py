"""Fusion of base logits and scores, and its KL to the base.

With bonus a(v) = β·Σ_i w_i·s_i(prefix + v):

    logits'[v] = logits[v] + a(v)                        v a candidate
    logits'[v] = −inf              (tail = truncate)     else; PARGS, arXiv 2406.07780
    logits'[v] = logits[v] + mean_C a   (tail = mean)    else; VAS
"""

import torch
from torch import Tensor

from trimtab.candidates import Candidates


def fuse_(
    logits: Tensor, index: Tensor, candidates: Candidates, bonus: Tensor, tail_mean: Tensor
) -> None:
    """Fuse some rows of a batch in place, with one pass over the vocabulary where the tail is cut.

    logits: [batch, vocab] float32. index: [rows] into the batch, each at most once.
    bonus: [rows, k], read where candidates are real. tail_mean: [rows] bool; False cuts the tail.
    """
    if candidates.whole:
        logits.index_add_(0, index, bonus)
        return
    real = candidates.real
    row = index[:, None].expand_as(real)[real]  # [Σ candidates]
    token = candidates.tokens[real]
    fused = logits[row, token] + bonus[real]
    logits.index_fill_(0, index[~tail_mean], -torch.inf)
    mean = _tail_bonus(candidates, bonus, tail_mean)[tail_mean]
    logits.index_add_(0, index[tail_mean], mean[:, None].expand(-1, logits.shape[1]))
    logits[row, token] = fused


def divergence(candidates: Candidates, bonus: Tensor, tail_mean: Tensor) -> tuple[Tensor, Tensor]:
    """KL(π ‖ π0) over the full vocabulary in nats, and log Z; both [rows], at temperature 1.

    π is π0 with exponential weights. With a(v) as above and a_T on the tail,
    KL = Σ_C π(v)·a(v) + π(tail)·a_T − log Z,   Z = Σ_C π0(v)·e^a(v) + π0(tail)·e^a_T.
    This needs no pass over the vocabulary.
    """
    weights, exponents = _exponents(candidates, bonus, tail_mean)
    unnormalised = weights + exponents  # [rows, k + 1]
    log_z = unnormalised.logsumexp(-1)
    p = (unnormalised - log_z[:, None]).exp()
    kl = (p * torch.where(p > 0, exponents, 0.0)).sum(-1) - log_z
    return kl.clamp(min=0), log_z


def tilted(candidates: Candidates, bonus: Tensor, tail_mean: Tensor) -> Tensor:
    """π of each candidate and, in the last column, of the tail: [rows, k + 1]."""
    weights, exponents = _exponents(candidates, bonus, tail_mean)
    return (weights + exponents).softmax(-1)


def _exponents(candidates: Candidates, bonus: Tensor, tail_mean: Tensor) -> tuple[Tensor, Tensor]:
    """log π0 and bonus of each candidate and, in the last column, of the tail; [rows, k + 1]."""
    logprobs = candidates.logprobs.masked_fill(~candidates.real, -torch.inf)
    tail_mass = (1 - logprobs.exp().sum(-1)).clamp(min=0)
    tail = _tail_bonus(candidates, bonus, tail_mean)
    weights = torch.cat((logprobs, tail_mass.log()[:, None]), 1)
    return weights, torch.cat((bonus.masked_fill(~candidates.real, 0.0), tail[:, None]), 1)


def _tail_bonus(candidates: Candidates, bonus: Tensor, tail_mean: Tensor) -> Tensor:
    return torch.where(tail_mean, candidates.mean(bonus), -torch.inf)


def fuse_reference(
    logits: Tensor, tokens: list[list[int]], bonus: list[list[float]], tails: list[str]
) -> Tensor:
    """The definition, token by token. The tests also compute KL from it."""
    out = []
    for row, row_tokens, row_bonus, tail in zip(logits, tokens, bonus, tails, strict=True):
        mean = sum(row_bonus) / len(row_bonus)
        fused = row + mean if tail == "mean" else torch.full_like(row, -torch.inf)
        for token, a in zip(row_tokens, row_bonus, strict=True):
            fused[token] = row[token] + a
        out.append(fused)
    return torch.stack(out)
