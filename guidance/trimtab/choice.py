"""The candidates of a step's rows: on the device, and on the host, with one wait for the device."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from trimtab.candidates import Candidates, every, select
from trimtab.rows import Row
from trimtab.scoring.pool import Ids
from trimtab.slots import Held


@dataclass
class Choice:
    """The candidates of some rows, all of which have k = "all", or none."""

    candidates: Candidates  # on the device of the logits
    host: Candidates  # on the host, but for whole vocabularies, which no plan reads
    groups: list[Ids]  # of each row; with k = "all" one array for all rows
    cuts: list[float]  # what it would cost each row to cut its tail, in nats; 0 if no row cuts it

    @classmethod
    def of(cls, base: Tensor, rows: Sequence[Row], held: Held) -> "Choice":
        """Of rows with the logits `base`, [rows, vocab], and their parameters on its device."""
        numbers = [row.params.k for row in rows if row.params.k != "all"]
        if not numbers:
            candidates = every(base)
            groups = [np.arange(base.shape[1])] * len(rows)
            return cls(candidates, candidates, groups, [0.0] * len(rows))
        candidates = select(base, held.k, held.mass, max(numbers))
        host = candidates.on_host()
        tokens = host.tokens.numpy()
        groups = [tokens[r, :n] for r, n in enumerate(host.counts.tolist())]
        cuts = [0.0] * len(rows)
        if any(row.params.tail == "truncate" for row in rows):
            cuts = (-host.mass.log()).tolist()
        return cls(candidates, host, groups, cuts)
