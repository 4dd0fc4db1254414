"""A pool of prefix K/V, token by token, shared between rows.

The pool is one tensor of token slots a layer. A row's cached prefix is a list of slots; rows
with a common prompt share the same slots, counted by `refs`. The cache only saves time: each step
a row's entry is compared with the row's real prefix, cut at the first difference and extended by
the missing tokens, so entries may be lost at any time.

When slots are short, they are taken in this order:

    1. entries of rows that have ended, the oldest first
    2. candidates of rows that were computed in this step
    3. only for who cannot do without: ends of other prefixes, those of the latest rows first

Rows come in turn, so the least recently used row is the one that comes next: to take its slots is
the worst choice, and the latest row's the best (Belady, IBM Systems Journal 5(2), 1966). Who can do
without slots (attention.py) lets all rows keep theirs, and reads the tokens that have none again in
each step, in temporary slots: n rows of length L in a pool of S slots read n·L − S tokens again.
"""

import math
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trimtab.errors import TrimtabError
from trimtab.scoring.prefix_index import PrefixIndex

Ids = npt.NDArray[np.int64]
K = TypeVar("K")
V = TypeVar("V")
NO_IDS: Ids = np.zeros(0, dtype=np.int64)
NO_IDS.flags.writeable = False
FIRST_GAP = 64
"""Steps after which a row is expected again, before any row has come twice."""
PATIENCE = 4
"""A row that does not come for this many of its usual gaps has ended."""


class PoolFull(TrimtabError):
    """No slots are left, even after every entry that may be cut is cut."""


@dataclass
class CachedPrefix:
    """A cached prefix: token i has its K/V in slot `slots[i]`.

    `scratch_*` are the candidates of the last step, with their K/V at position len(tokens): the one
    that the base chooses is not computed again.
    """

    key: int
    used: int  # the step in which its row came last
    gap: int = 0  # steps between two steps of its row; 0 if it has come only once
    tokens: Ids = field(default_factory=lambda: NO_IDS)  # [length]
    slots: Ids = field(default_factory=lambda: NO_IDS)  # [length]
    scratch_tokens: Ids = field(default_factory=lambda: NO_IDS)  # [candidates]
    scratch_slots: Ids = field(default_factory=lambda: NO_IDS)  # [candidates]
    shared: bool = True  # whether other rows may share it


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
    """Slots for the K/V of prefixes, within a fixed number of bytes.

    Slot 0 is never allocated: it stays zero and pads ragged gathers. Slots from `size` on are
    temporary: every layer writes them anew in each forward, so one layer's memory serves all.

    Args:
        temporary: number of temporary slots, whose memory comes on top of `max_bytes`.
    """

    def __init__(
        self,
        *,
        layers: int,
        kv_heads: int,
        head_dim: int,
        max_bytes: int,
        temporary: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        token_bytes = 2 * layers * kv_heads * head_dim * dtype.itemsize
        self.size = max_bytes // token_bytes
        own, token = layers * self.size, (kv_heads, head_dim)
        self._k, self._v = (_zeros((own + temporary, *token), dtype, device) for _ in range(2))
        self.k = self._k[:own].view(layers, self.size, *token)  # [layers, slots, kv_heads, dim]
        self.v = self._v[:own].view(layers, self.size, *token)
        self._gathered = self.k.new_empty(2, 0, *token)
        self.ended = self.cut = self.overflow = 0  # tokens, see meters.pool
        self.clear()

    def clear(self) -> None:
        """Drop every entry, in any state of the pool."""
        self.entries: OrderedDict[int, CachedPrefix] = OrderedDict()  # the latest computed last
        self.index = PrefixIndex()
        self.now = 0  # number of the step
        self.gap = FIRST_GAP  # steps between two steps of the row that came again last
        self._waiting: set[int] = set()  # rows of this step that are not planned yet
        self._scratched: set[int] = set()  # entries with candidates
        self._ended: deque[int] | None = None  # the oldest first; None before a step needs slots
        self._refs = np.zeros(self.size, dtype=np.int32)
        self._free = np.arange(self.size - 1, 0, -1, dtype=np.int64)  # a stack of free slots
        self._n_free = max(self.size - 1, 0)

    @property
    def free_slots(self) -> int:
        """Number of free slots."""
        return self._n_free

    def begin(self, keys: Sequence[int], prefixes: Sequence[Ids]) -> None:
        """Begin a step of these rows: cut their entries to what is still true.

        So the slots that they need no more are free before the first of them needs new ones.
        """
        self.now += 1
        self._ended = None
        self._waiting = set(keys)
        for key, prefix in zip(keys, prefixes, strict=True):
            if key in self.entries:
                self.reconcile(key, prefix)

    def reconcile(self, key: int, tokens: Ids) -> CachedPrefix:
        """The entry of row `key`, cut to what it shares with `tokens`.

        A row without an entry shares the common start of another entry, also of one planned earlier
        in the same step: the attention writes all new K/V of a layer before it reads any.
        """
        entry = self.entries.get(key)
        if entry is None:
            return self._share(key, tokens)
        if entry.used < self.now:
            self.gap = self.now - entry.used
            entry.gap, entry.used = max(self.gap, entry.gap // 2), self.now
        length = common_prefix(entry.tokens, tokens)
        if length == len(entry.tokens) < len(tokens):
            self._adopt(entry, int(tokens[length]))
        elif length < len(entry.tokens):
            self._cut(entry, length)
        self._drop_scratch(entry)
        return entry

    def missing(self, key: int, tokens: Ids) -> int:
        """Number of tokens whose K/V the entry of `key` does not have."""
        entry = self.entries.get(key)
        return len(tokens) - (0 if entry is None else len(entry.tokens))

    def extend(self, key: int, tokens: Ids, protected: set[int], first: int | None = None) -> Ids:
        """Slots for the missing tokens of the entry of `key`, [len(tokens) − cached].

        protected: entries that may not be cut, besides this one.
        first: number of the temporary slot of the first missing token; tokens without a slot of
            their own have temporary ones and do not join the entry. None: all must have their own.

        Raises:
            PoolFull: `first` is None, and there is no room.
        """
        entry, missing = self.entries[key], self.missing(key, tokens)
        protected = protected | {key}
        self._make_room(missing, protected, cut=first is None)
        own = min(missing, self._n_free)
        if first is None and own < missing:
            raise PoolFull(
                f"the prefix pool has {self.size} slots and cannot hold {missing} more tokens; "
                "raise cache_bytes."
            )
        self.overflow += missing - own
        new = self._allocate(own)
        entry.tokens = tokens[: len(entry.tokens) + own]
        entry.slots = np.concatenate((entry.slots, new))
        if entry.shared:
            self.index.put(key, entry.tokens)
        self.entries.move_to_end(key)
        self._waiting.discard(key)
        return np.concatenate((new, self.size + (first or 0) + np.arange(own, missing)))

    def hold(self, key: int, length: int, candidates: Ids, first: int) -> Ids:
        """Slots for the candidates of row `key`, whose prefix has `length` tokens: [candidates].

        They are temporary, from number `first` on, if there is no room for all, or if the entry
        does not hold the whole prefix.
        """
        entry, count = self.entries[key], len(candidates)
        if len(entry.tokens) == length:
            self._make_room(count, {key}, cut=False, scratch=False)
            if count <= self._n_free:
                entry.scratch_tokens, entry.scratch_slots = candidates, self._allocate(count)
                self._scratched.add(key)
                return entry.scratch_slots
        return self.size + first + np.arange(count)

    def gather(self, layer: int, slots: Tensor, temporary: bool = False) -> tuple[Tensor, Tensor]:
        """K and V of some slots, [slots, kv_heads, dim] each, valid until the next call.

        On the CPU they are written to kept memory: new memory costs more than the copy.
        """
        k, v, places = self._of(layer, slots, temporary)
        if k.device.type != "cpu":
            return k.index_select(0, places), v.index_select(0, places)
        if len(places) > self._gathered.shape[1]:
            self._gathered = k.new_empty(2, len(places), *k.shape[1:])
        out = self._gathered[:, : len(places)]
        torch.index_select(k, 0, places, out=out[0])
        torch.index_select(v, 0, places, out=out[1])
        return out[0], out[1]

    def write(
        self, layer: int, slots: Tensor, k: Tensor, v: Tensor, temporary: bool = False
    ) -> None:
        """Write K and V of some slots, [slots, kv_heads, dim] each."""
        pool_k, pool_v, places = self._of(layer, slots, temporary)
        pool_k.index_copy_(0, places, k)
        pool_v.index_copy_(0, places, v)

    def fork(self, key: int, new: int) -> None:
        """Add a row `new` that shares the cached prefix of row `key`; no other row shares it."""
        entry = self.entries[key]
        self._refs[entry.slots] += 1
        self.entries[new] = CachedPrefix(
            new, self.now, tokens=entry.tokens, slots=entry.slots, shared=False
        )

    def drop(self, key: int) -> None:
        """Drop the entry of `key`, if there is one."""
        entry = self.entries.get(key)
        if entry is not None:
            self._cut(entry, 0)
            del self.entries[key]

    def _of(self, layer: int, slots: Tensor, temporary: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Memory of K and of V, and the places of a layer's slots in it."""
        if not temporary:
            return self.k[layer], self.v[layer], slots
        last = (len(self.k) - 1) * self.size  # temporary slots follow the last layer's
        places = slots + torch.where(slots < self.size, layer * self.size, last)
        return self._k, self._v, places

    def _share(self, key: int, tokens: Ids) -> CachedPrefix:
        entry = self.entries[key] = CachedPrefix(key, self.now)
        nearest = self.index.nearest(tokens)
        if nearest is not None:
            other = self.entries[nearest]
            length = common_prefix(other.tokens, tokens)
            entry.tokens, entry.slots = tokens[:length], other.slots[:length]
            self._refs[entry.slots] += 1
            self.index.put(key, entry.tokens)
        return entry

    def _adopt(self, entry: CachedPrefix, token: int) -> None:
        """The base chose one of the scratch candidates: its slot joins the prefix."""
        hits = np.flatnonzero(entry.scratch_tokens == token)
        if len(hits):
            at = int(hits[0])
            entry.tokens = np.append(entry.tokens, entry.scratch_tokens[at])
            entry.slots = np.append(entry.slots, entry.scratch_slots[at])
            entry.scratch_slots = np.delete(entry.scratch_slots, at)
            self.index.put(entry.key, entry.tokens)

    def _make_room(
        self, count: int, protected: set[int], *, cut: bool, scratch: bool = True
    ) -> None:
        """Free slots until there are `count`, or nothing more may be taken."""
        if count > self._n_free:
            self._drop_ended(count)
        if scratch and count > self._n_free:
            for key in self._scratched - protected:
                self._drop_scratch(self.entries[key])
                if count <= self._n_free:
                    return
        if cut and count > self._n_free:
            for entry in self._latest(protected):
                before = len(entry.slots)
                while entry.slots.size and count > self._n_free:  # some slots are shared
                    self._cut(entry, max(len(entry.slots) - (count - self._n_free), 0))
                self.cut += before - len(entry.slots)
                if count <= self._n_free:
                    return

    def _drop_ended(self, count: int) -> None:
        """Drop entries of rows that have ended until there is room."""
        if self._ended is None:
            ended = [
                e
                for e in self.entries.values()
                if self.now - e.used > PATIENCE * (e.gap or self.gap)
            ]
            self._ended = deque(e.key for e in sorted(ended, key=lambda e: e.used))
        while self._ended and count > self._n_free:
            entry = self.entries.get(self._ended.popleft())
            if entry is not None and entry.used < self.now:  # else it is a new row's
                self.ended += len(entry.slots)
                self.drop(entry.key)

    def _latest(self, protected: set[int]) -> list[CachedPrefix]:
        """Entries that may be cut, the latest first.

        Rows that this step still needs come last, and only if no other row can be computed first.
        """
        entries = [e for key, e in reversed(self.entries.items()) if key not in protected]
        done = [e for e in entries if e.key not in self._waiting]
        return done if len(protected) > 1 else done + [e for e in entries if e.key in self._waiting]

    def _cut(self, entry: CachedPrefix, length: int) -> None:
        self._drop_scratch(entry)  # it follows the whole prefix
        self._release(entry.slots[length:])
        entry.tokens, entry.slots = entry.tokens[:length], entry.slots[:length]
        self.index.cut(entry.key, length)

    def _drop_scratch(self, entry: CachedPrefix) -> None:
        self._release(entry.scratch_slots)
        entry.scratch_tokens = entry.scratch_slots = NO_IDS
        self._scratched.discard(entry.key)

    def _allocate(self, count: int) -> Ids:
        self._n_free -= count
        slots = self._free[self._n_free : self._n_free + count].copy()
        self._refs[slots] = 1
        return slots

    def _release(self, slots: Ids) -> None:
        self._refs[slots] -= 1
        freed = slots[self._refs[slots] == 0]
        self._free[self._n_free : self._n_free + len(freed)] = freed
        self._n_free += len(freed)


def _zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Zeros, which on a CPU take memory only when they are written: torch would write them all."""
    if torch.device(device).type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return (
        torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, np.uint8))
        .view(dtype)
        .view(shape)
    )
