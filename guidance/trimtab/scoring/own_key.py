"""Attention over a prefix and one own key, in closed form.

A candidate sees its whole prefix and itself. With the attention over the prefix alone, `out`, and
the log-sum-exp of its logits, `lse`, the softmax over both is a merge of two parts (as in flash
attention, arXiv 2205.14135):

    w = σ(q·k_own·scale − lse),    merged = (1 − w)·out + w·v_own

so a candidate's K/V are never stored, and candidates need no mask between them.
"""

import torch
from torch import Tensor

HIDDEN = -30000.0
"""Added to the logits of hidden keys. Finite: a kernel may start with hidden keys only, and the
difference of two infinities is not a number. exp(−30000) is 0, and float16 holds it."""


def over_prefix(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention over cached keys, and the log-sum-exp of its logits, by a fused kernel.

    q: [rows, heads, queries, dim]; k, v: [rows, heads, keys, dim]; bias: [rows, 1, 1 or queries,
    keys], added to the logits: 0, or HIDDEN.
    Returns [rows, heads, queries, dim] and [rows, heads, queries] float32.
    """
    if q.device.type == "cpu":
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, attn_mask=bias, scale=scale
        )
        return out, lse
    if q.shape[-1] % 8:  # the kernel reads 16 bytes at once
        return by_formula(q, k, v, bias, scale)
    rows, heads, queries, _ = q.shape
    bias = bias.expand(rows, heads, queries, k.shape[2])
    out, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
        q, k, v, bias, True, scale=scale
    )
    return out, lse[..., :queries]  # the kernel pads it to a multiple of 32


def by_formula(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """The definition of `over_prefix`."""
    logits = (q @ k.mT).float() * scale + bias
    return logits.softmax(-1).to(v.dtype) @ v, logits.logsumexp(-1)


def with_own(out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Merge attention over a prefix with one own key for each query; computed in float32.

    out, q: [..., dim]; lse: [...]; k, v: the own key and value, broadcast to [..., dim].
    """
    own = (q.float() * k.float()).sum(-1) * scale
    weight = torch.sigmoid(own - lse)
    return torch.lerp(out.float(), v.float(), weight[..., None]).to(out.dtype)
