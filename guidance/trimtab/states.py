"""The sums of the base's states of all rows, from step to step.

A row's sum grows by one state at each step. After a preemption the engine computes only the last
state again, and a search continues the tokens of rows that have ended: then the sum that is known
for these very tokens is taken over. It is never used for other tokens. A row whose sum is lost has
NaN for its states, and with them for the scores of its probes, so it fails.
"""

from collections import OrderedDict
from collections.abc import Sequence
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from trimtab.rows import Row
from trimtab.scoring.pool import Ids
from trimtab.scoring.states import RowState, StateBatch
from trimtab_models.transfers import upload

MAX_BYTES = 64 * 2**20
"""Bytes of the sums of ended rows."""


class States:
    """The states of a guide's rows."""

    def __init__(self) -> None:
        self.former = 1
        """Former states of a row that are known: of the last step, for what it reports late."""
        self._index: tuple[list[int], Tensor] | None = None  # of the last step, and on the device
        self.live: WeakValueDictionary[int, Row] = WeakValueDictionary()
        self.ended: OrderedDict[tuple[int, bytes], RowState] = OrderedDict()  # oldest first

    def follow(self, rows: Sequence[tuple[int, Row]], hidden: Tensor) -> None:
        """Add this step's states to the rows' sums.

        rows: (index into `hidden`, row with its current prefix). hidden: [batch, hidden].
        """
        for _, row in rows:
            if row.earlier is not None and row.state is None:
                row.state = row.earlier.state
        new = [(i, row) for i, row in rows if _own(row, row.prefix) is None]
        if not new:
            return  # the same step again
        index = [i for i, _ in new]
        known = self._index
        if known is None or known[0] != index or known[1].device != hidden.device:
            known = self._index = index, upload(torch.tensor(index), hidden.device)
        batch = self._added([row for _, row in new], hidden[known[1]].float())
        for r, (_, row) in enumerate(new):
            row.state = RowState(batch, r, row.prefix, _start(row), row.state)
            row.state.cut(self.former)
            self.live[row.key] = row

    def of(self, rows: Sequence[Row]) -> Tensor:
        """h_t and m_t of each row at its prefix, [rows, 2, hidden] float32; NaN where unknown."""
        states = [self._at(row, row.prefix) for row in rows]
        known = [state for state in states if state is not None]
        if not known:
            return torch.full((len(rows), 2, 1), torch.nan)
        batch = known[0].batch
        if len(known) == len(rows) and all(state.batch is batch for state in known):
            index = [state.index for state in known]
            whole = index == list(range(len(batch.last)))
            if whole:
                return batch.states
            return batch.states[upload(torch.tensor(index), batch.states.device)]
        lost = torch.full_like(batch.states[0], torch.nan)
        return torch.stack(
            [lost if state is None else state.batch.states[state.index] for state in states]
        )

    def end(self, row: Row) -> None:
        """Keep the sums of a row that has left the batch: it may come back, or be continued."""
        state = row.state
        while state is not None:
            self._keep(RowState(state.batch.one(state.index), 0, state.prefix, state.start))
            state = state.former

    def know(self, text: Ids, states: Tensor, start: int = 1) -> None:
        """Keep the states of a text; states: [length of the text, hidden].

        start: tokens of its prompt; by default it has none.
        """
        own = states[start - 1 :].float()  # from the state before the answer's first token on
        counts = torch.full((1, 1), float(len(own)), device=own.device)
        batch = StateBatch(own[-1:], own.sum(0, keepdim=True), counts)
        self._keep(RowState(batch, 0, text, start))

    def _keep(self, state: RowState) -> None:
        key = state.start, state.prefix.tobytes()
        if not (key in self.ended and state.batch.states.isnan().any()):  # a lost sum says nothing
            self.ended[key] = state
        self.ended.move_to_end(key)  # what ended again is the newest
        size = 2 * state.batch.last.nbytes + state.prefix.nbytes
        while len(self.ended) > max(MAX_BYTES // size, 1):
            self.ended.popitem(last=False)

    def _added(self, rows: Sequence[Row], last: Tensor) -> StateBatch:
        """The rows' states after one more state each, last: [rows, hidden] float32."""
        before = [self._before(row) for row in rows]
        batch = before[0].batch if before[0] is not None else None
        order = [state.index for state in before if state is not None and state.batch is batch]
        if batch is not None and order == list(range(len(batch.last))) and len(order) == len(rows):
            return StateBatch(last, batch.totals + last, batch.counts + 1)
        totals, counts = last.clone(), torch.ones(len(rows), 1, device=last.device)
        for r, (row, state) in enumerate(zip(rows, before, strict=True)):
            if state is not None:
                totals[r] += state.batch.totals[state.index]
                counts[r] += state.batch.counts[state.index]
            elif len(row.prefix) != _start(row):
                totals[r] = torch.nan
        return StateBatch(last, totals, counts)

    def _before(self, row: Row) -> RowState | None:
        """A row's states one token earlier; None at the beginning of its answer, or if unknown."""
        return None if len(row.prefix) <= _start(row) else self._at(row, row.prefix[:-1])

    def _at(self, row: Row, prefix: Ids) -> RowState | None:
        """The states at a prefix: the row's own, an ended row's, or another row's."""
        known = _own(row, prefix) or self.ended.get((_start(row), prefix.tobytes()))
        if known is not None:
            return known
        states = (other.state for other in self.live.values() if other.state is not None)
        matching = (state.at(prefix, _start(row)) for state in states)
        return next((state for state in matching if state is not None), None)


def _start(row: Row) -> int:
    """Tokens of a row's prompt; the answer of a text without a prompt begins with its second."""
    return max(row.start, 1)


def _own(row: Row, prefix: Ids) -> RowState | None:
    return None if row.state is None else row.state.at(prefix, _start(row))
