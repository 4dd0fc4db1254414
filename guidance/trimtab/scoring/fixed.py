"""One decode step of a scorer's network with fixed shapes, without a wait for the device.

Every row contributes its last token, which is read again, and its candidates, padded to a bucket
of rows, candidates and keys. All that changes between steps is one packed tensor of integers:

    ids      [rows, 1 + candidates]   last token, candidates; padded with the last token
    lengths  [rows]                   tokens of the prefix, the last one included
    table    [rows, keys]             the pool's slot of each token; padded with slot 0
    wanted   [rows · (1 + candidates)]   packed queries whose hidden states are requested

In every layer the K/V of the last tokens are written to the pool. All queries of a row then see
its whole prefix, and candidates also themselves (merging.py); the last token's own key is in the
prefix. Padded rows repeat the first row: they write what it writes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from trimtab.scoring import merging
from trimtab.scoring.pool import Ids, PrefixPool

CANDIDATES = (0, 4, 10, 16, 32, 64, 128, 256)
"""Numbers of candidates that shapes are padded to; 10 is the papers' k."""
KEYS = 128
"""Fewest keys that shapes are padded to."""
MOST_QUERIES = 128 * 33
"""Maximum queries of one forward over several rows, to bound its memory."""
MOST_KEYS = 2**17
"""Maximum keys of one forward over several rows, likewise."""


@dataclass
class FixedRow:
    """One row of a step; the K/V of its last token are written to the last of its slots."""

    prefix: Ids  # [length]
    slots: Ids  # [length]
    candidates: Ids  # may be empty: then the last token's hidden state is requested


@dataclass(frozen=True)
class Shape:
    """A bucket: the shapes of one forward."""

    rows: int
    queries: int  # of each row: 1 + candidates
    keys: int

    @classmethod
    def of(cls, rows: int, candidates: int, length: int) -> "Shape":
        """The smallest bucket: rows and keys are powers of two."""
        width = next((c for c in CANDIDATES if c >= candidates), candidates)
        return cls(_power(rows), 1 + width, max(_power(length), KEYS))

    @property
    def fits(self) -> bool:
        """Whether one forward may have this shape."""
        return self.rows == 1 or (
            self.rows * self.queries <= MOST_QUERIES and self.rows * self.keys <= MOST_KEYS
        )

    @property
    def sizes(self) -> list[int]:
        """Lengths of the parts of the packed input: ids, lengths, table, wanted."""
        queries = self.rows * self.queries
        return [queries, self.rows, self.rows * self.keys, queries]

    def pack(self, rows: Sequence[FixedRow]) -> tuple[npt.NDArray[np.int32], int]:
        """The packed input of a step on the host, int32, and the number of wanted queries."""
        packed = np.zeros(sum(self.sizes), dtype=np.int32)
        ids, lengths, table, wanted = np.split(packed, np.cumsum(self.sizes)[:-1])
        ids = ids.reshape(self.rows, self.queries)
        table = table.reshape(self.rows, self.keys)
        places = []
        for r, row in enumerate(rows):
            ids[r] = row.prefix[-1]
            ids[r, 1 : 1 + len(row.candidates)] = row.candidates
            lengths[r] = len(row.slots)
            table[r, : len(row.slots)] = row.slots
            first = r * self.queries + bool(len(row.candidates))
            places.append(np.arange(first, first + max(len(row.candidates), 1)))
        ids[len(rows) :], lengths[len(rows) :], table[len(rows) :] = ids[0], lengths[0], table[0]
        chosen = np.concatenate(places)
        wanted[: len(chosen)] = chosen
        return packed, len(chosen)


def forward(network: nn.Module, pool: PrefixPool, shape: Shape, packed: Tensor) -> Tensor:
    """The last hidden states of all queries, [rows · queries, hidden]; nothing waits in it."""
    ids, lengths, table, _ = packed.split(shape.sizes)
    plan = FixedPlan(pool, shape, lengths.long(), table)
    hidden: Tensor = network(
        input_ids=ids[None].long(),
        position_ids=plan.positions.view(1, -1),
        use_cache=False,
        trimtab_plan=plan,
    ).last_hidden_state[0]
    return hidden


class FixedPlan:
    """The attention of one forward with fixed shapes."""

    def __init__(self, pool: PrefixPool, shape: Shape, lengths: Tensor, table: Tensor) -> None:
        """lengths: [rows] int64; table: [rows · keys]."""
        self.pool, self.shape, self.lengths, self.table = pool, shape, lengths, table
        slots = table.view(shape.rows, shape.keys)
        self.last = slots.gather(1, lengths[:, None] - 1)[:, 0].long()  # [rows] slots
        self.is_last = torch.arange(shape.queries, device=table.device) == 0  # [queries]
        self.positions = lengths[:, None] - self.is_last.long()  # [rows, queries]
        self.biases: dict[int | None, Tensor] = {}

    def bias(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """0 or HIDDEN, [rows, 1, queries, keys], with 1 for queries if the layer does not slide."""
        bias = self.biases.get(window)
        if bias is None:
            key = torch.arange(self.shape.keys, device=self.table.device)
            visible = key < self.lengths[:, None, None]  # [rows, 1, keys]
            if window is not None:
                visible = visible & (key > self.positions[:, :, None] - window)
            self.biases[window] = bias = (~visible)[:, None].to(dtype) * merging.HIDDEN
        return bias

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float,
        window: int | None,
    ) -> Tensor:
        """Attention of one layer; shapes as in attention.prefix_attention."""
        rows, n, (kv, dim) = self.shape.rows, self.shape.queries, (key.shape[1], key.shape[3])
        fold = query.shape[1] // kv
        key = key[0].view(kv, rows, n, dim).transpose(0, 1)  # [rows, kv, queries, dim]
        value = value[0].view(kv, rows, n, dim).transpose(0, 1)
        pool_k, pool_v = self.pool.k[layer], self.pool.v[layer]  # [slots, kv, dim]
        pool_k.index_copy_(0, self.last, key[:, :, 0])
        pool_v.index_copy_(0, self.last, value[:, :, 0])
        k, v = (
            part.index_select(0, self.table).view(rows, -1, kv, dim).transpose(1, 2)
            for part in (pool_k, pool_v)
        )  # [rows, kv, keys, dim]
        # Heads that share a K/V head are folded into the queries: K/V are never repeated.
        q = query[0].view(kv, fold, rows, n, dim).permute(2, 0, 1, 3, 4)
        bias = self.bias(window, query.dtype)
        if window is not None:
            bias = bias.repeat(1, 1, fold, 1)
        out, lse = merging.attend(
            q.reshape(rows, kv, fold * n, dim), k, v, bias, scaling
        )  # [rows, kv, fold·queries, dim]
        out = out.view(rows, kv, fold, n, dim)
        if n > 1:
            merged = merging.with_own(
                out, lse.view(rows, kv, fold, n), q, key[:, :, None], value[:, :, None], scaling
            )
            out = out.where(self.is_last[:, None], merged)
        return out.permute(0, 3, 1, 2, 4).reshape(1, rows * n, kv * fold, dim)


def _power(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()
