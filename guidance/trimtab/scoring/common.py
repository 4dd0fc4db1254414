"""One forward of a step for all that read the same backbone.

Several calls of a step may read one backbone: of scorers whose backbones are equal (backbones.py),
of a composite's parts, and for rows with and without planned strengths. Each call asks for its own
rows. The guide announces the rows of all of them; the first call that asks forwards these, and the
others get theirs from what is kept:

    hidden(rows) = forward(announced)[rows]

Rows that were not announced are forwarded by themselves. So are a call's own rows if the announced
ones fail: another scorer's row must not cost them their scores.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from trimtab.scoring.deadline import OutOfTime
from trimtab.scoring.pool import Ids
from trimtab_models.transfers import upload

Forward = Callable[[Sequence[int], Sequence[Ids], Sequence[Ids] | None], Tensor]
"""Backbone.hidden, without prompts."""


@dataclass(frozen=True)
class _Announced:
    """The rows of a step, and their hidden states once they are forwarded."""

    keys: Sequence[int]
    prefixes: Sequence[Ids]
    candidates: Sequence[Ids]
    fresh: int
    hidden: Tensor | None = None  # [Σ candidates, hidden], or [rows, hidden] of the prefixes alone
    alone: bool = False  # whether they are of the prefixes alone

    def places(
        self, keys: Sequence[int], prefixes: Sequence[Ids], candidates: Sequence[Ids] | None
    ) -> list[int] | None:
        """The number of each row among the announced ones; None if one is not among them."""
        if self.hidden is not None and self.alone != (candidates is None):
            return None
        number = {key: i for i, key in enumerate(self.keys)}
        places = []
        for r, (key, prefix) in enumerate(zip(keys, prefixes, strict=True)):
            i = number.get(key)
            if i is None or not _same(prefix, self.prefixes[i]):
                return None
            if candidates is not None and not _same(candidates[r], self.candidates[i]):
                return None
            places.append(i)
        return places

    def part(self, places: Sequence[int], hidden: Tensor) -> Tensor:
        """The hidden states of some rows, in their order."""
        if places == list(range(len(self.keys))):
            return hidden
        sizes = [1 if self.alone else len(group) for group in self.candidates]
        ends = np.cumsum(sizes)
        index = np.concatenate([np.arange(ends[i] - sizes[i], ends[i]) for i in places])
        return hidden.index_select(0, upload(torch.from_numpy(index), hidden.device))


class CommonForward:
    """The announced rows of a backbone, and what is kept of them until the next announcement."""

    def __init__(self) -> None:
        self._announced: _Announced | None = None  # replaced as a whole: an abandoned thread may

    @property
    def fresh(self) -> int:
        """Prefix tokens that the announced rows' forward reads for the first time."""
        announced = self._announced
        return 0 if announced is None or announced.hidden is not None else announced.fresh

    def announce(
        self,
        keys: Sequence[int],
        prefixes: Sequence[Ids],
        candidates: Sequence[Ids],
        fresh: int = 0,
    ) -> None:
        """Say which rows will be read in this step; fresh: tokens that no call has read yet."""
        self._announced = _Announced(keys, prefixes, candidates, fresh)

    def read(
        self,
        keys: Sequence[int],
        prefixes: Sequence[Ids],
        candidates: Sequence[Ids] | None,
        forward: Forward,
    ) -> Tensor:
        """The hidden states of some rows, as `forward` gives them."""
        announced = self._announced
        places = None if announced is None else announced.places(keys, prefixes, candidates)
        if announced is None or places is None:
            return forward(keys, prefixes, candidates)
        hidden = announced.hidden
        if hidden is None:
            self._announced = None  # what fails is not tried again
            alone = candidates is None
            try:
                rows = announced.keys, announced.prefixes
                hidden = forward(*rows, None if alone else announced.candidates)
            except OutOfTime:
                raise
            except Exception:
                if len(keys) == len(announced.keys):
                    raise
                return forward(keys, prefixes, candidates)
            announced = replace(announced, hidden=hidden, alone=alone)
            self._announced = announced
        return announced.part(places, hidden)


def _same(a: Ids, b: Ids) -> bool:
    return a is b or np.array_equal(a, b)
