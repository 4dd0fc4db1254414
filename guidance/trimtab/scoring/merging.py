"""Attention in parts: over two sets of keys, merged by the log-sum-exp of their logits.

With `out` and `lse` of each part, the softmax over both is (as in flash attention, arXiv
2205.14135)

    w = σ(lse_2 − lse_1),    merged = (1 − w)·out_1 + w·out_2

So rows with a common prompt attend to its keys in one call. And a candidate, which sees its whole
prefix and itself, is a closed form: its second part is one key, with lse_2 = q·k_own·scale and
out_2 = v_own. Its K/V need not be stored, and candidates need no mask between them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

HIDDEN = -30000.0
"""Added to the logits of hidden keys. Finite: a kernel may start with hidden keys only, and the
difference of two infinities is not a number. exp(−30000) is 0, and float16 holds it."""


def attend(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, *, causal: bool = False
) -> tuple[Tensor, Tensor]:
    """Attention over one set of keys, and the log-sum-exp of its logits, by a fused kernel.

    q: [rows, heads, queries, dim]; k, v: [rows, heads, keys, dim]; bias: [rows, 1, 1 or queries,
    keys], added to the logits: 0, or HIDDEN; None hides nothing. causal: query i sees the keys up
    to i only, without a bias.
    Returns [rows, heads, queries, dim] and [rows, heads, queries] float32.
    """
    if q.device.type == "cpu":
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, causal, attn_mask=bias, scale=scale
        )
        return out, lse
    if q.shape[-1] % 8:  # the kernel reads 16 bytes at once
        return by_formula(q, k, v, bias, scale, causal=causal)
    rows, heads, queries, _ = q.shape
    if bias is not None:
        if over := bias.shape[-1] % 16:  # its rows must be aligned too
            bias = F.pad(bias, (0, 16 - over))[..., : k.shape[2]]
        bias = bias.expand(rows, heads, queries, k.shape[2])
    out, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
        q, k, v, bias, True, 0.0, causal, scale=scale
    )
    return out, lse[..., :queries]  # the kernel pads it to a multiple of 32


def by_formula(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, *, causal: bool = False
) -> tuple[Tensor, Tensor]:
    """The definition of `attend`."""
    logits = (q @ k.mT).float() * scale
    if bias is not None:
        logits = logits + bias
    if causal:
        logits = logits + torch.full_like(logits[0, 0], HIDDEN).triu(1)
    return logits.softmax(-1).to(v.dtype) @ v, logits.logsumexp(-1)


def merge(out: Tensor, lse: Tensor, other: Tensor, other_lse: Tensor) -> Tensor:
    """Attention over the keys of two parts, computed in float32.

    out, other: [..., dim]; lse, other_lse: [...].
    """
    weight = torch.sigmoid(other_lse - lse)
    return torch.lerp(out.float(), other.float(), weight[..., None]).to(out.dtype)


def with_own(out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Merge attention over a prefix with one own key for each query.

    out, q: [..., dim]; lse: [...]; k, v: the own key and value, broadcast to [..., dim].
    """
    return merge(out, lse, v, (q.float() * k.float()).sum(-1) * scale)
