"""The candidates of a step's rows, on the device and on the host.

All rows that have a number as k choose at once, and one copy takes their candidates to the host.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trimtab.candidates import Candidates, every, select
from trimtab.rows import Row
from trimtab.scoring.pool import Ids
from trimtab.slots import Held
from trimtab_models.transfers import to_host, upload


@dataclass
class Choice:
    """The candidates of some rows, all of which have k = "all", or none."""

    candidates: Candidates  # on the device of the logits
    host: Candidates  # on the host, but for whole vocabularies, which no plan reads
    groups: list[Ids]  # of each row; with k = "all" one array for all rows
    cuts: list[float]  # what it would cost each row to cut its tail, in nats; 0 if no row cuts it

    @classmethod
    def whole(cls, base: Tensor) -> "Choice":
        """Of rows with k = "all" and the logits `base`, [rows, vocab]."""
        candidates, (rows, vocab) = every(base), base.shape
        return cls(candidates, candidates, [np.arange(vocab)] * rows, [0.0] * rows)


class Choices:
    """The candidates of all rows of a step that have a number as k."""

    def __init__(self, logits: Tensor, rows: Sequence[tuple[int, Row]], held: Held) -> None:
        """rows: (index into logits, [batch, vocab], and row); held: their parameters."""
        self._place = {index: r for r, (index, _) in enumerate(rows)}
        ks = [row.params.k for _, row in rows if row.params.k != "all"]
        self._candidates = select(held.rows_of(logits), held.k, held.mass, max(ks))
        self.parts = [self._candidates.tokens, self._candidates.logprobs, self._candidates.counts]
        """What the host needs of them, on the device."""
        self._host: Candidates | None = None

    def arrive(self, parts: Sequence[Tensor]) -> None:
        """Take the parts, which have come to the host."""
        tokens, logprobs, counts = parts
        self._host = Candidates(tokens, logprobs, counts)

    def of(self, rows: Sequence[tuple[int, Row]]) -> Choice:
        """Of some of the rows; waits for the device if the parts have not arrived."""
        if self._host is None:
            self.arrive(to_host(self.parts))
        assert self._host is not None
        candidates, host = self._candidates, self._host
        places = torch.tensor([self._place[index] for index, _ in rows])
        if len(rows) < len(self._place):
            width = max(row.params.k for _, row in rows if row.params.k != "all")
            candidates = candidates.rows(upload(places, candidates.tokens.device), width)
            host = host.rows(places, width)
        tokens = host.tokens.numpy()
        groups = [tokens[r, :n] for r, n in enumerate(host.counts.tolist())]
        cuts = [0.0] * len(rows)
        if any(row.params.tail == "truncate" for _, row in rows):
            cuts = (-host.mass.log()).tolist()
        return Choice(candidates, host, groups, cuts)
