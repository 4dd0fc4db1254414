"""Fusion of base logits and scores, and its KL to the base.

With bonus a(v) = β·Σ_i w_i·s_i(prefix + v):

    logits'[v] = logits[v] + a(v)                        v a candidate
    logits'[v] = −inf              (tail = truncate)     else; PARGS, arXiv 2406.07780
    logits'[v] = logits[v] + mean_C a   (tail = mean)    else; VAS
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.candidates import Candidates
from trimtab.verdict import Verdict
from trimtab_models.transfers import upload


@dataclass(frozen=True)
class Fused:
    """What fusion did to some rows of a batch: their shift, but for a few tokens."""

    index: Sequence[int]  # rows of the batch
    tokens: Tensor  # [rows, k] int64; a token may stand there twice
    logits: Tensor  # [rows, k] float32, what they have now
    shift: Tensor  # [rows] float32, what all other tokens got


def fuse_(
    logits: Tensor,
    index: Sequence[int],
    place: Tensor,
    candidates: Candidates,
    bonus: Tensor,
    tail_mean: Tensor,
    verdict: Verdict,
) -> Fused | None:
    """Fuse some rows of a batch in place, with one pass over their vocabulary.

    logits: [batch, vocab] float32. index: the rows in the batch, each at most once; place: the
    same on the device, [rows] int64.
    bonus: [rows, k], read where candidates are real. tail_mean: [rows] bool; False cuts the tail.
    Returns what it did, None if every token is a candidate.
    """
    row = place[:, None]
    guided, ended, stop = (part[:, None] for part in (verdict.guided, verdict.ended, verdict.stop))
    other = torch.where(ended, -torch.inf, 0.0)  # [rows, 1], for rows that are not guided
    if candidates.whole:
        change = bonus if verdict.usual else torch.where(guided, bonus, other)
        last = logits[row, stop]
        for part, rows in _runs(index):
            logits[part].add_(change[rows])
        if not verdict.usual:
            logits[row, stop] = torch.where(ended, last, logits[row, stop])
        return None
    real = candidates.real
    # Padding stands for the first candidate once more, so that shapes are fixed.
    token = torch.where(real, candidates.tokens, candidates.tokens[:, :1])
    change = torch.where(real, bonus, bonus[:, :1])
    shift = _tail_bonus(candidates, bonus, tail_mean)[:, None]
    if not verdict.usual:
        token, change = torch.where(ended, stop, token), torch.where(guided, change, 0.0)
        shift = torch.where(guided, shift, other)
    fused = logits[row, token] + change
    for part, rows in _runs(index):
        logits[part].add_(shift[rows])
    logits[row, token] = fused
    return Fused(index, token, fused, shift[:, 0])


def end_(logits: Tensor, index: Sequence[int], stop: Sequence[int]) -> Fused | None:
    """Leave only the stop token of some rows, in place, if it is allowed: so they end now.

    stop: a token of each row, −1 where there is none.
    """
    pairs = [(i, token) for i, token in zip(index, stop, strict=True) if token >= 0]
    if not pairs:
        return None
    row, token = upload(torch.tensor(pairs), logits.device).T[..., None]  # [rows, 1] each
    value = logits[row, token]
    shift = torch.where(value.isfinite(), -torch.inf, 0.0)
    logits[row[:, 0]] += shift
    logits[row, token] = value
    return Fused([i for i, _ in pairs], token, value, shift[:, 0])


def _runs(index: Sequence[int]) -> list[tuple[slice, slice]]:
    """Consecutive rows of a batch: their places in it, and in `index`.

    A slice is a view: to add to it takes a tenth of the time of index_add_.
    """
    starts = [r for r, i in enumerate(index) if r == 0 or i != index[r - 1] + 1]
    ends = [*starts[1:], len(index)]
    return [
        (slice(index[start], index[start] + end - start), slice(start, end))
        for start, end in zip(starts, ends, strict=True)
    ]


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
    """log π0 and bonus of each candidate and, in the last column, of the tail; [rows, k + 1].

    Whole vocabularies have no tail, so [rows, vocab].
    """
    if candidates.whole:
        return candidates.logprobs, bonus
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
