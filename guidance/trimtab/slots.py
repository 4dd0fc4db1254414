"""Parameters of rows on the device: written when a row enters, gathered by slot at each step.

A row keeps its slot as long as it lives, and shares it with the rows after its draft tokens. A step
with the same rows as the last one uploads nothing; other steps upload the slots of their rows, and
the parameters of those that are new.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TypeAlias
from weakref import finalize

import torch
from torch import Tensor

from trimtab.rows import Row, Slot
from trimtab_models.transfers import upload

Fixed: TypeAlias = Callable[[Row], Mapping[str, tuple[float, float]]]
"""The scorers of a row whose strength is fixed: the factor of the scores, and their mean."""

PLAIN = 4
"""Columns before those of scorers: k, mass, whether the tail is kept, and the stop token."""
OWN = 3
"""Columns of each scorer: whether the row uses it at a fixed strength, its factor and its mean."""


class Held:
    """The parameters of some rows of a batch, on the device."""

    def __init__(
        self, index: Sequence[int], place: Tensor, values: Tensor, columns: Mapping[str, int]
    ) -> None:
        """Of rows at `index` of a batch; place: the same on the device, [rows] int64.

        values: [columns, rows]; columns: the first of each scorer.
        """
        self.place = place
        # Usually all rows are guided in order: then no [rows, vocab] tensor is copied.
        self._all = len(index) if list(index) == list(range(len(index))) else None
        self._values, self._columns = values, columns
        self._uses: dict[str, Tensor] = {}
        self._scales: dict[tuple[str, ...], tuple[Tensor, Tensor]] = {}

    @cached_property
    def k(self) -> Tensor:
        """[rows] int64; 0 stands for "all"."""
        return self._values[0].long()

    @cached_property
    def mass(self) -> Tensor:
        """[rows] float32."""
        return self._values[1]

    @cached_property
    def tail_mean(self) -> Tensor:
        """[rows] bool, False where the tail is cut."""
        return self._values[2] > 0

    @cached_property
    def stop(self) -> Tensor:
        """[rows] int64, the token that ends the row if its scorer fails, 0 if there is none."""
        return self._values[3].long().clamp(min=0)

    @cached_property
    def ends(self) -> Tensor:
        """Whether there is such a token, [rows] bool."""
        return self._values[3] >= 0

    def rows_of(self, logits: Tensor) -> Tensor:
        """These rows of a batch, [batch, vocab] → [rows, vocab]; the batch itself if it is all."""
        return logits if self._all == len(logits) else logits[self.place]

    def uses(self, name: str) -> Tensor:
        """Whether rows use a scorer at a fixed strength, [rows] bool."""
        if name not in self._uses:
            self._uses[name] = self._values[self._columns[name]] > 0
        return self._uses[name]

    def scales(self, names: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Factors of the scores and their means, [names, rows] float32; 0 for rows without them."""
        key = tuple(names)
        if key not in self._scales:
            first = [self._columns[name] for name in names]
            factors, means = (torch.stack([self._values[c + i] for c in first]) for i in (1, 2))
            self._scales[key] = factors, means
        return self._scales[key]


class Slots:
    """The parameters of all rows, on one device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._columns: dict[str, int] = {}
        self._free: list[int] = []
        with torch.inference_mode(False):  # or it could not change outside inference mode
            self._table = self._zeros(PLAIN, 0)  # [columns, slots] float32
        self._last: tuple[list[list[int]], Held] | None = None

    def of(self, index: Sequence[int], rows: Sequence[Row], fixed: Fixed) -> Held:
        """The parameters of rows at `index` of a batch."""
        new = [row for row in rows if not self._known(row, fixed)]
        if new:
            self._enter(new, fixed)
        places = [list(index), [row.slot.index for row in rows if row.slot is not None]]
        if self._last is None or self._last[0] != places:
            place, slot = upload(torch.tensor(places), self.device)
            self._last = places, Held(index, place, self._table[:, slot], self._columns)
        return self._last[1]

    def _known(self, row: Row, fixed: Fixed) -> bool:
        """Whether a row's slot has its parameters."""
        slot = row.slot
        return (
            slot is not None
            and slot.owner is self._free
            and slot.params is row.params
            and slot.stop == stop_of(row)
            and (not row.params.normalize or slot.fixed == fixed(row))
        )

    @torch.inference_mode(False)
    def _enter(self, rows: Sequence[Row], fixed: Fixed) -> None:
        """Give slots to rows, and write their parameters."""
        for row in rows:
            if not self._free:
                self._widen()
            row.slot = Slot(self._free, self._free.pop(), row.params, stop_of(row), fixed(row))
            finalize(row.slot, self._free.append, row.slot.index).atexit = False
            for name in row.slot.fixed:
                self._columns.setdefault(name, PLAIN + OWN * len(self._columns))
        missing = PLAIN + OWN * len(self._columns) - len(self._table)
        if missing:
            self._table = torch.cat((self._table, self._zeros(missing, self._table.shape[1])))
        values = torch.tensor([values_of(row, fixed, self._columns) for row in rows])
        slots = torch.tensor([row.slot.index for row in rows if row.slot is not None])
        self._table.index_copy_(1, upload(slots, self.device), upload(values.T, self.device))
        self._last = None

    def _widen(self) -> None:
        """Twice as many slots."""
        width = self._table.shape[1]
        self._table = torch.cat((self._table, self._zeros(len(self._table), max(width, 32))), 1)
        self._free += range(self._table.shape[1] - 1, width - 1, -1)

    def _zeros(self, columns: int, slots: int) -> Tensor:
        return torch.zeros(columns, slots, device=self.device)


def stop_of(row: Row) -> int:
    """The token that ends a row if its scorer fails, −1 if it goes on."""
    ends = row.params.on_error == "fail" and row.stop_token is not None
    return row.stop_token if ends and row.stop_token is not None else -1


def values_of(row: Row, fixed: Fixed, columns: Mapping[str, int]) -> list[float]:
    """A row's parameters, by column."""
    k, tail = row.params.k, row.params.tail
    plain = [0 if k == "all" else k, row.params.mass, tail != "truncate", stop_of(row)]
    values = [*map(float, plain), *[0.0] * (OWN * len(columns))]
    for name, (factor, mean) in fixed(row).items():
        values[columns[name] : columns[name] + OWN] = [1.0, factor, mean]
    return values


def reference(index: Sequence[int], rows: Sequence[Row], fixed: Fixed) -> Held:
    """The same without slots, made of the rows' parameters at each step."""
    names = dict.fromkeys(name for row in rows for name in fixed(row))
    columns = {name: PLAIN + OWN * i for i, name in enumerate(names)}
    values = torch.tensor([values_of(row, fixed, columns) for row in rows])
    return Held(index, torch.tensor(index), values.T, columns)
