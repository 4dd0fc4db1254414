"""Prefix-shared attention: a row's candidates see its cached prefix and themselves only.

Registered in transformers' attention registry, so any backbone that goes through the registry
runs unchanged over one packed sequence of the new tokens of all rows. A row's block holds
[prefix tokens not yet cached] + [its candidates]; all candidates of a row have the position after
its prefix. For a query q of a row, with key index p in [prefix, candidates]:

    visible(q, p)  =  p = self(q)  or  (p < len(prefix) and p ≤ self(q))
                      and position(p) > position(q) − window,  if the layer slides

so one forward of few tokens per row equals re-forwarding the prefix with each candidate. A row that
reads many prefix tokens attends to them apart (causal.py), so that no mask of [tokens, keys] is
needed.
"""

from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from trimtab.scoring.causal import Span, causal
from trimtab.scoring.merging import HIDDEN, attend, merge
from trimtab.scoring.pool import Ids, PrefixPool
from trimtab.scoring.shared import Block, SharedRun, shared_runs

NAME = "trimtab_prefix"
MANY = 64
"""New prefix tokens of a row above which they are a span of their own."""


@dataclass
class AttentionGroup:
    """Rows of similar size, attended in one call; queries and keys are padded only within it."""

    query_index: Tensor | None  # [rows·Q] into the packed tokens; None for all in order
    kv_index: Tensor  # [rows·L] into the pool's slots
    rows: int
    own: Tensor | None = None  # [rows, Q] key index of each query itself; None hides no key
    lengths: Tensor | None = None  # [rows] prefix lengths
    masks: dict[tuple[int | None, int], Tensor] = field(default_factory=dict)

    def mask(self, window: int | None, groups: int, dtype: torch.dtype) -> Tensor | None:
        """Additive mask [rows, 1, groups·Q, L], built once per step for each kind of layer."""
        if self.own is None or self.lengths is None:
            return None
        cached = self.masks.get((window, groups))
        if cached is None:
            p = torch.arange(len(self.kv_index) // self.rows, device=self.own.device)  # [L]
            own = self.own[:, :, None]  # [rows, Q, 1]
            length = self.lengths[:, None, None]
            visible = (p == own) | ((p < length) & (p <= own))  # [rows, Q, L]
            if window is not None:
                visible &= torch.minimum(p, length) > torch.minimum(own, length) - window
            cached = torch.zeros(visible.shape, dtype=dtype, device=p.device)
            cached.masked_fill_(~visible, HIDDEN)
            cached = cached.repeat(1, groups, 1)[:, None]
            self.masks[window, groups] = cached
        return cached


class AttentionPlan:
    """The K/V slot of each packed token, and the keys it may see. Built once per step.

    Rows whose prefixes begin with the same slots attend to these in one call (shared.py), and to
    their other keys in groups; a layer that slides attends in groups only.
    """

    def __init__(self, pool: PrefixPool, blocks: list[Block], new_slots: Ids) -> None:
        self.pool, self.blocks = pool, blocks
        self.new_slots = torch.from_numpy(new_slots).to(pool.k.device)  # [tokens]
        self.temporary = bool((new_slots >= pool.size).any())
        self.runs = shared_runs(blocks)
        self._grouped: dict[bool, Grouped] = {}

    def grouped(self, whole: bool) -> "Grouped":
        """Groups over whole prefixes, or over what is not in a shared run."""
        if not self.runs:
            whole = True
        if whole not in self._grouped:
            runs = [] if whole else self.runs
            self._grouped[whole] = Grouped.build(self.blocks, runs, self.new_slots.device)
        return self._grouped[whole]

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
        new_k, new_v = key[0].transpose(0, 1), value[0].transpose(0, 1)  # [tokens, kv_heads, dim]
        self.pool.write(layer, self.new_slots, new_k, new_v, self.temporary)
        q = query[0].transpose(0, 1)  # [tokens, heads, dim]
        grouped = self.grouped(window is not None)
        parts = [self._part(group, layer, q, scaling, window) for group in grouped.groups]
        parts += [self._span(span, layer, q, scaling, window) for span in grouped.spans]
        out = _in_order([out for out, _ in parts], grouped.scatter)
        if grouped.runs:
            lse = _in_order([lse.flatten(2).flatten(0, 1) for _, lse in parts], grouped.scatter)
        for run in grouped.runs:
            other, other_lse = self._part(run, layer, q, scaling, None)
            other_lse = other_lse.flatten(2)[0]
            at = run.query_index
            if at is None:
                out = merge(out, lse, other, other_lse)
            else:
                merged = merge(out.index_select(0, at), lse.index_select(0, at), other, other_lse)
                out = out.index_copy(0, at, merged)
        return out[None]

    def _part(
        self, group: "AttentionGroup", layer: int, q: Tensor, scaling: float, window: int | None
    ) -> tuple[Tensor, Tensor]:
        """A group's attention and its log-sum-exp.

        [rows·Q, heads, dim] and [rows, Q, kv_heads, heads ÷ kv_heads].
        """
        heads, dim = q.shape[1:]
        rows, kv_heads = group.rows, self.pool.k.shape[2]
        fold = heads // kv_heads
        # Heads that share a K/V head are folded into the queries: K/V are never repeated.
        q_rows = q if group.query_index is None else q.index_select(0, group.query_index)
        q_rows = q_rows.reshape(rows, -1, kv_heads, fold, dim).permute(0, 2, 3, 1, 4)
        k_rows, v_rows = (
            part.view(rows, -1, kv_heads, dim).transpose(1, 2)
            for part in self.pool.gather(layer, group.kv_index, self.temporary)
        )
        out, lse = attend(
            q_rows.reshape(rows, kv_heads, -1, dim),
            k_rows,
            v_rows,
            group.mask(window, fold, q.dtype),
            scaling,
        )  # [rows, kv_heads, fold·Q, dim], [rows, kv_heads, fold·Q]
        out = out.view(rows, kv_heads, fold, -1, dim).permute(0, 3, 1, 2, 4)
        lse = lse.view(rows, kv_heads, fold, -1).permute(0, 3, 1, 2)
        return out.reshape(-1, heads, dim), lse

    def _span(
        self, span: Span, layer: int, q: Tensor, scaling: float, window: int | None
    ) -> tuple[Tensor, Tensor]:
        """A span's attention and its log-sum-exp; shapes as of a group with one row."""
        heads, dim = q.shape[1:]
        k, v = self.pool.gather(layer, span.slots, self.temporary)  # [keys, kv_heads, dim]
        own = q[span.first : span.first + span.queries].view(span.queries, k.shape[1], -1, dim)
        out, lse = causal(
            own.permute(1, 2, 0, 3), k.transpose(0, 1), v.transpose(0, 1), window, scaling
        )
        return out.permute(2, 0, 1, 3).reshape(-1, heads, dim), lse.permute(2, 0, 1)[None]


@dataclass
class Grouped:
    """All packed tokens in groups and spans, and the runs that complete their attention."""

    groups: list[AttentionGroup]
    spans: list[Span]
    scatter: Tensor | None  # [tokens] packed token → its place among the queries of both
    runs: list[AttentionGroup]

    @classmethod
    def build(cls, blocks: list[Block], runs: list[SharedRun], device: torch.device) -> "Grouped":
        """Group the blocks by size, so that padding stays small where lengths differ much."""
        ends = np.cumsum([block.queries for block in blocks])
        shared = np.zeros(len(blocks), dtype=np.int64)  # keys of each block that are in a run
        for run in runs:
            shared[run.members] = run.length
        first = ends - [block.queries for block in blocks]  # packed token of each block's first
        parts, spans = list[tuple[int, Block]](), list[Span]()
        for i, block in enumerate(blocks):
            new = block.prefix - block.start
            if new <= MANY:
                parts.append((i, block))
                continue
            slots = torch.from_numpy(block.slots[shared[i] : block.prefix]).to(device)
            spans.append(Span(int(first[i]), new, slots))
            if block.queries > new:  # candidates: by now all of their prefix has slots
                first[i] += new
                parts.append((i, replace(block, start=block.prefix, queries=block.queries - new)))
        buckets: dict[tuple[int, int], list[tuple[int, Block]]] = defaultdict(list)
        for i, block in parts:
            # A factor of 4 in queries and 2 in keys bounds the padding.
            queries = max(block.queries - 1, 15).bit_length() // 2
            size = max(len(block.slots) - int(shared[i]), 64)
            buckets[queries, (size - 1).bit_length()].append((i, block))
        groups, places, offset = [], np.empty(ends[-1], dtype=np.int64), 0
        for members in buckets.values():
            q_max = max(block.queries for _, block in members)
            l_max = max(len(block.slots) - int(shared[i]) for i, block in members)
            query_index = np.zeros((len(members), q_max), dtype=np.int64)
            own = np.zeros((len(members), q_max), dtype=np.int64)
            kv_index = np.zeros((len(members), l_max), dtype=np.int64)
            for r, (i, block) in enumerate(members):
                n = block.queries
                query_index[r, :n] = np.arange(first[i], first[i] + n)
                # New prefix tokens and candidates follow each other among the keys.
                own[r, :n] = np.arange(block.start, block.start + n) - shared[i]
                kv_index[r, : len(block.slots) - shared[i]] = block.slots[shared[i] :]
                places[first[i] : first[i] + n] = offset + r * q_max + np.arange(n)
            offset += len(members) * q_max
            lengths = [block.prefix - int(shared[i]) for i, block in members]
            groups.append(
                AttentionGroup(
                    torch.from_numpy(query_index.ravel()).to(device),
                    torch.from_numpy(kv_index.ravel()).to(device),
                    len(members),
                    torch.from_numpy(own).to(device),
                    torch.tensor(lengths, device=device),
                )
            )
        for span in spans:
            places[span.first : span.first + span.queries] = offset + np.arange(span.queries)
            offset += span.queries
        scatter: Tensor | None = torch.from_numpy(places).to(device)
        if len(groups) + len(spans) == 1 and offset == len(places):  # then places is 0, 1, 2, …
            scatter = None
            for group in groups:
                group.query_index = None
        starts = np.append(0, ends)
        return cls(
            groups, spans, scatter, [_run_group(run, blocks, starts, device) for run in runs]
        )


def _in_order(parts: list[Tensor], scatter: Tensor | None) -> Tensor:
    """What the groups' queries got, in the order of the packed tokens."""
    whole = parts[0] if len(parts) == 1 else torch.cat(parts)
    return whole if scatter is None else whole.index_select(0, scatter)


def _run_group(
    run: SharedRun, blocks: list[Block], first: Ids, device: torch.device
) -> AttentionGroup:
    """All queries of a run's rows, over the run's keys, none of which is hidden."""
    queries = np.concatenate([np.arange(first[i], first[i + 1]) for i in run.members])
    index = None if len(queries) == first[-1] else torch.from_numpy(queries).to(device)
    slots = blocks[run.members[0]].slots[: run.length]
    return AttentionGroup(index, torch.from_numpy(slots).to(device), 1)


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
