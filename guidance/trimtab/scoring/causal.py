"""Attention of many new tokens of one prefix, in memory that is linear in the prefix's length.

A new token sees the cached tokens and the new ones up to itself. Of the cached ones nothing is
hidden from it, and the new ones are causal, which kernels know without a mask; the two are merged
by their log-sum-exp (merging.py):

    softmax over [cached, new up to i]  =  merge(softmax over cached, causal softmax over new)

In a layer that slides, a token sees only the last `window` tokens. Then blocks of BLOCK queries
attend to the keys that any of them sees, fewer than window + BLOCK, under one small mask.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.scoring.merging import HIDDEN, attend, merge

BLOCK = 128
"""Queries of a block in a layer that slides."""


@dataclass(frozen=True)
class Span:
    """The new tokens of one prefix, as queries."""

    first: int  # packed token of the first
    queries: int
    slots: Tensor  # [cached + queries] of all keys


def causal(
    q: Tensor, k: Tensor, v: Tensor, window: int | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention of the last tokens of a prefix, and its log-sum-exp.

    q: [kv_heads, fold, n, dim], heads that share a K/V head together; k, v: [kv_heads, keys, dim],
    of all tokens; the n last keys are the queries' own.
    Returns [kv_heads, fold, n, dim] and [kv_heads, fold, n] float32.
    """
    if window is not None and window < k.shape[1]:
        return _sliding(q, k, v, window, scale)
    (kv, fold, n, dim), cached = q.shape, k.shape[1] - q.shape[2]
    own_k, own_v = (part[None, :, cached:].repeat_interleave(fold, 1) for part in (k, v))
    out, lse = attend(q.reshape(1, -1, n, dim), own_k, own_v, None, scale, causal=True)
    out, lse = out.view(kv, fold, n, dim), lse.view(kv, fold, n)
    if cached:
        folded = q.reshape(1, kv, fold * n, dim)  # K/V are not repeated
        other, other_lse = attend(folded, k[None, :, :cached], v[None, :, :cached], None, scale)
        other, other_lse = other.view_as(out), other_lse.view_as(lse)
        out, lse = merge(out, lse, other, other_lse), torch.logaddexp(lse, other_lse)
    return out, lse


def _sliding(q: Tensor, k: Tensor, v: Tensor, window: int, scale: float) -> tuple[Tensor, Tensor]:
    kv, fold, n, dim = q.shape
    cached = k.shape[1] - n
    # [BLOCK, keys]: of any block, from the first key that its first query sees
    key = torch.arange(window - 1 + BLOCK, device=q.device)
    own = torch.arange(BLOCK, device=q.device)[:, None] + window - 1
    hidden = (key > own) | (key <= own - window)
    mask = torch.zeros(hidden.shape, dtype=q.dtype, device=q.device).masked_fill_(hidden, HIDDEN)
    outs, sums = [], []
    for i in range(0, n, BLOCK):
        size = min(BLOCK, n - i)
        start = cached + i - window + 1  # below 0, the first keys are missing
        low, high = max(start, 0), cached + i + size
        bias = mask[:size, low - start : high - start].repeat(fold, 1)[None, None]
        out, lse = attend(
            q[None, :, :, i : i + size].reshape(1, kv, fold * size, dim),
            k[None, :, low:high],
            v[None, :, low:high],
            bias,
            scale,
        )
        outs.append(out.view(kv, fold, size, dim))
        sums.append(lse.view(kv, fold, size))
    return torch.cat(outs, 2), torch.cat(sums, 2)
