"""Prefix-shared attention: a row's candidates see its cached prefix and themselves only.

Registered in transformers' attention registry, so any backbone that goes through the registry
runs unchanged over one packed sequence of the new tokens of all rows. A row's block holds
[prefix tokens not yet cached] + [its candidates]; all candidates of a row have the position after
its prefix. For a query q of a row, with key index p in [prefix, candidates]:

    visible(q, p)  =  p = self(q)  or  (p < len(prefix) and p ≤ self(q))
                      and position(p) > position(q) − window,  if the layer slides

so one forward of few tokens per row equals re-forwarding the prefix with each candidate.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from trimtab.scoring.pool import Ids, PrefixPool

NAME = "trimtab_prefix"


@dataclass
class Block:
    """One row's share of a packed forward."""

    slots: Ids  # [prefix + candidates] slots of its K/V, including new ones
    prefix: int  # length of the prefix
    start: int  # first position of the prefix that is new; the queries before the candidates
    queries: int  # new prefix tokens + candidates


@dataclass
class AttentionGroup:
    """Rows of similar size, attended in one call; queries and keys are padded only within it."""

    query_index: Tensor  # [rows·Q] into the packed tokens
    kv_index: Tensor  # [rows·L] into the pool's slots
    own: Tensor  # [rows, Q] key index of each query itself
    lengths: Tensor  # [rows] prefix lengths
    rows: int
    masks: dict[tuple[int | None, int], Tensor] = field(default_factory=dict)

    def mask(self, window: int | None, groups: int, dtype: torch.dtype) -> Tensor:
        """Additive mask [rows, 1, groups·Q, L], built once per step for each kind of layer."""
        cached = self.masks.get((window, groups))
        if cached is None:
            p = torch.arange(len(self.kv_index) // self.rows, device=self.own.device)  # [L]
            own = self.own[:, :, None]  # [rows, Q, 1]
            length = self.lengths[:, None, None]
            visible = (p == own) | ((p < length) & (p <= own))  # [rows, Q, L]
            if window is not None:
                visible &= torch.minimum(p, length) > torch.minimum(own, length) - window
            cached = torch.zeros(visible.shape, dtype=dtype, device=p.device)
            cached.masked_fill_(~visible, -torch.inf)
            cached = cached.repeat(1, groups, 1)[:, None]
            self.masks[window, groups] = cached
        return cached


@dataclass
class AttentionPlan:
    """The K/V slot of each packed token, and the keys it may see. Built once per step."""

    pool: PrefixPool
    new_slots: Tensor  # [tokens]
    groups: list[AttentionGroup]
    scatter: Tensor | None  # [tokens] packed token → its place among the groups' queries

    @classmethod
    def build(cls, pool: PrefixPool, blocks: list[Block], new_slots: Ids) -> "AttentionPlan":
        """Group the blocks by size, so that padding stays small where lengths differ much."""
        device = pool.k.device
        first = np.cumsum([0] + [block.queries for block in blocks])
        buckets: dict[tuple[int, int], list[int]] = defaultdict(list)
        for i, block in enumerate(blocks):
            # A factor of 4 in queries and 2 in keys bounds the padding.
            size = (max(block.queries - 1, 15).bit_length() // 2, max(len(block.slots), 64))
            buckets[size[0], (size[1] - 1).bit_length()].append(i)
        groups, places, offset = [], np.empty(first[-1], dtype=np.int64), 0
        for members in buckets.values():
            q_max = max(blocks[i].queries for i in members)
            l_max = max(len(blocks[i].slots) for i in members)
            query_index = np.zeros((len(members), q_max), dtype=np.int64)
            own = np.zeros((len(members), q_max), dtype=np.int64)
            kv_index = np.zeros((len(members), l_max), dtype=np.int64)
            for r, i in enumerate(members):
                block, n = blocks[i], blocks[i].queries
                query_index[r, :n] = np.arange(first[i], first[i] + n)
                # New prefix tokens and candidates follow each other among the keys.
                own[r, :n] = np.arange(block.start, block.start + n)
                kv_index[r, : len(block.slots)] = block.slots
                places[first[i] : first[i] + n] = offset + r * q_max + np.arange(n)
            offset += len(members) * q_max
            groups.append(
                AttentionGroup(
                    torch.from_numpy(query_index.ravel()).to(device),
                    torch.from_numpy(kv_index.ravel()).to(device),
                    torch.from_numpy(own).to(device),
                    torch.tensor([blocks[i].prefix for i in members], device=device),
                    len(members),
                )
            )
        in_order = len(groups) == 1 and offset == len(places)  # then places is 0, 1, 2, …
        scatter = None if in_order else torch.from_numpy(places).to(device)
        return cls(pool, torch.from_numpy(new_slots).to(device), groups, scatter)

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float,
        window: int | None,
    ) -> Tensor:
        """Attention of one layer; shapes as in prefix_attention."""
        pool_k, pool_v = self.pool.k[layer], self.pool.v[layer]  # [slots, kv_heads, dim]
        pool_k.index_copy_(0, self.new_slots, key[0].transpose(0, 1))
        pool_v.index_copy_(0, self.new_slots, value[0].transpose(0, 1))
        q = query[0].transpose(0, 1)  # [tokens, heads, dim]
        heads, dim = q.shape[1:]
        kv_heads = pool_k.shape[1]
        outputs = []
        for group in self.groups:
            rows, fold = group.rows, heads // kv_heads
            # Heads that share a K/V head are folded into the queries: K/V are never repeated.
            q_rows = q if self.scatter is None else q.index_select(0, group.query_index)
            q_rows = q_rows.reshape(rows, -1, kv_heads, fold, dim).permute(0, 2, 3, 1, 4)
            q_rows = q_rows.reshape(rows, kv_heads, -1, dim)
            k_rows = pool_k.index_select(0, group.kv_index).view(rows, -1, kv_heads, dim)
            v_rows = pool_v.index_select(0, group.kv_index).view(rows, -1, kv_heads, dim)
            out = F.scaled_dot_product_attention(
                q_rows,
                k_rows.transpose(1, 2),
                v_rows.transpose(1, 2),
                attn_mask=group.mask(window, fold, q.dtype),
                scale=scaling,
            )  # [rows, kv_heads, fold·Q, dim]
            out = out.view(rows, kv_heads, fold, -1, dim).permute(0, 3, 1, 2, 4)
            outputs.append(out.reshape(-1, heads, dim))
        packed = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        if self.scatter is not None:
            packed = packed.index_select(0, self.scatter)
        return packed[None]


class Plan(Protocol):
    """The attention of one forward."""

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float,
        window: int | None,
    ) -> Tensor:
        """Attention of one layer; shapes as in prefix_attention. `window`: None does not slide."""


def prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    trimtab_plan: Plan,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of the packed new tokens over their rows' prefixes, as transformers calls it.

    query: [1, heads, tokens, dim]; key, value: [1, kv_heads, tokens, dim].
    Returns [1, tokens, heads, dim] and no weights.
    """
    layer: Any = module.layer_idx
    return trimtab_plan.attend(layer, query, key, value, scaling, sliding_window), None


AttentionInterface.register(NAME, prefix_attention)
