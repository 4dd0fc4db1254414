"""A pool of prefix K/V, token by token, shared between rows.

The pool is one tensor of token slots a layer. A row's cached prefix is a list of slots; rows
with a common prompt share the same slots, counted by `refs`. The cache only saves time: each step
a row's entry is compared with the row's real prefix, cut at the first difference and extended by
the missing tokens, so entries may be lost at any time.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trimtab.errors import TrimtabError

Ids = npt.NDArray[np.int64]
K = TypeVar("K")
V = TypeVar("V")
NO_IDS: Ids = np.zeros(0, dtype=np.int64)
NO_IDS.flags.writeable = False


class PoolFull(TrimtabError):
    """No slots are left, even after the eviction of all idle entries."""


@dataclass
class CachedPrefix:
    """A cached prefix: token i has its K/V in slot `slots[i]`.

    `scratch_*` are the candidates of the last step, with their K/V at position len(tokens): the one
    that the base chooses is not computed again.
    """

    tokens: Ids = field(default_factory=lambda: NO_IDS)  # [length]
    slots: Ids = field(default_factory=lambda: NO_IDS)  # [length]
    scratch_tokens: Ids = field(default_factory=lambda: NO_IDS)  # [candidates]
    scratch_slots: Ids = field(default_factory=lambda: NO_IDS)  # [candidates]


def keep(store: OrderedDict[K, V], key: K, value: V, most: int) -> None:
    """Store an entry as the latest, and drop the oldest ones beyond `most`."""
    store[key] = value
    store.move_to_end(key)
    while len(store) > most:
        store.popitem(last=False)


def common_prefix(a: Ids, b: Ids) -> int:
    """Length of the longest common prefix of two id arrays."""
    n = min(len(a), len(b))
    if n and a[0] != b[0]:
        return 0
    different = a[:n] != b[:n]
    first = int(different.argmax()) if n else 0
    return first if n and different[first] else n


class PrefixPool:
    """Slots for the K/V of prefixes, with a fixed byte budget and LRU eviction.

    Slot 0 is never allocated: it stays zero and pads ragged gathers.
    """

    def __init__(
        self,
        *,
        layers: int,
        kv_heads: int,
        head_dim: int,
        max_bytes: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        token_bytes = 2 * layers * kv_heads * head_dim * dtype.itemsize
        self.size = max_bytes // token_bytes
        shape = (layers, self.size, kv_heads, head_dim)
        self.k = torch.zeros(shape, dtype=dtype, device=device)  # [layers, slots, kv_heads, dim]
        self.v = torch.zeros(shape, dtype=dtype, device=device)
        self._gathered = self.k.new_empty(2, 0, *shape[2:])
        self.clear()

    def clear(self) -> None:
        """Drop every entry, in any state of the pool."""
        self.entries: OrderedDict[int, CachedPrefix] = OrderedDict()
        self._refs = np.zeros(self.size, dtype=np.int32)
        self._free = np.arange(self.size - 1, 0, -1, dtype=np.int64)  # a stack of free slots
        self._n_free = max(self.size - 1, 0)

    @property
    def free_slots(self) -> int:
        """Number of free slots."""
        return self._n_free

    def reconcile(self, key: int, tokens: Ids, *, keep: int | None = None) -> CachedPrefix:
        """The entry of row `key`, cut to what it shares with `tokens`.

        A row without an entry shares the longest common prefix of any other entry, also of one
        planned earlier in the same step: the attention writes all new K/V of a layer before it
        reads any. `keep` bounds the reused length.
        """
        limit = len(tokens) if keep is None else min(keep, len(tokens))
        entry = self.entries.get(key)
        if entry is None:
            entry = self.entries[key] = self._share(tokens[:limit])
        else:
            length = common_prefix(entry.tokens, tokens[:limit])
            if length == len(entry.tokens) < limit:
                self._adopt(entry, int(tokens[length]))
            elif length < len(entry.tokens):
                self._release(entry.slots[length:])
                entry.tokens, entry.slots = entry.tokens[:length], entry.slots[:length]
            self._release(entry.scratch_slots)
            entry.scratch_tokens = entry.scratch_slots = NO_IDS
        self.entries.move_to_end(key)
        return entry

    def extend(self, key: int, tokens: Ids, candidates: Ids, protected: set[int]) -> Ids:
        """Allocate slots for the missing tokens of the entry of `key`, and for its candidates.

        Returns the new slots, those of the prefix first: [len(tokens) − cached + candidates].

        Raises:
            PoolFull: there is no room without evicting an entry in `protected`.
        """
        entry = self.entries[key]
        missing = len(tokens) - len(entry.tokens)
        new = self._allocate(missing + len(candidates), protected | {key})
        entry.tokens = tokens
        entry.slots = np.concatenate((entry.slots, new[:missing]))
        entry.scratch_tokens, entry.scratch_slots = candidates, new[missing:]
        return new

    def gather(self, layer: int, slots: Tensor) -> tuple[Tensor, Tensor]:
        """K and V of some slots, [slots, kv_heads, dim] each, valid until the next call.

        On the CPU they are written to kept memory: new memory costs more than the copy.
        """
        k, v = self.k[layer], self.v[layer]
        if k.device.type != "cpu":
            return k.index_select(0, slots), v.index_select(0, slots)
        if len(slots) > self._gathered.shape[1]:
            self._gathered = k.new_empty(2, len(slots), *k.shape[1:])
        out = self._gathered[:, : len(slots)]
        torch.index_select(k, 0, slots, out=out[0])
        torch.index_select(v, 0, slots, out=out[1])
        return out[0], out[1]

    def fork(self, key: int, new: int) -> None:
        """Add a row `new` that shares the cached prefix of row `key`."""
        entry = self.entries[key]
        self._refs[entry.slots] += 1
        self.entries[new] = CachedPrefix(entry.tokens, entry.slots)

    def drop(self, key: int) -> None:
        """Drop the entry of `key`, if there is one."""
        entry = self.entries.pop(key, None)
        if entry is not None:
            self._release(entry.slots)
            self._release(entry.scratch_slots)

    def _share(self, tokens: Ids) -> CachedPrefix:
        best, length = None, 0
        # Answers to one prompt arrive together, so the best match is usually near the end.
        for other in reversed(self.entries.values()):
            n = common_prefix(other.tokens, tokens)
            if n > length:
                best, length = other, n
                if n >= len(tokens) - 1:  # as a row after a draft token shares with the one before
                    break
        if best is None:
            return CachedPrefix()
        slots = best.slots[:length]
        self._refs[slots] += 1
        return CachedPrefix(tokens[:length], slots)

    def _adopt(self, entry: CachedPrefix, token: int) -> None:
        """The base chose one of the scratch candidates: its slot joins the prefix."""
        hits = np.flatnonzero(entry.scratch_tokens == token)
        if len(hits):
            at = int(hits[0])
            entry.tokens = np.append(entry.tokens, entry.scratch_tokens[at])
            entry.slots = np.append(entry.slots, entry.scratch_slots[at])
            entry.scratch_slots = np.delete(entry.scratch_slots, at)

    def _allocate(self, count: int, protected: set[int]) -> Ids:
        if count > self._n_free:
            for key in [key for key in self.entries if key not in protected]:
                self.drop(key)
                if count <= self._n_free:
                    break
            else:
                raise PoolFull(
                    f"the prefix pool has {self.size} slots and cannot hold {count} more tokens; "
                    "raise cache_bytes."
                )
        self._n_free -= count
        slots = self._free[self._n_free : self._n_free + count].copy()
        self._refs[slots] = 1
        return slots

    def _release(self, slots: Ids) -> None:
        self._refs[slots] -= 1
        freed = slots[self._refs[slots] == 0]
        self._free[self._n_free : self._n_free + len(freed)] = freed
        self._n_free += len(freed)
