"""Which rows of a step are guided, and which end, decided on the device so that nobody waits.

A row whose bonus is not finite has lost its guidance, and with it the rows after its draft tokens.
It keeps the base's logits, or, with on_error = "fail", only its stop token, if this is allowed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.candidates import Candidates
from trimtab.rows import ROUNDING, Row
from trimtab.slots import Held
from trimtab_models.transfers import upload


@dataclass(frozen=True)
class Verdict:
    """What becomes of the rows of a step."""

    finite: Tensor  # [rows] bool, whether the bonus, and so every score, is finite
    guided: Tensor  # [rows] bool; the other rows keep the base's logits
    ended: Tensor  # [rows] bool; of these only the stop token is left
    stop: Tensor  # [rows] int64, the stop token, 0 where there is none
    usual: bool = False  # whether the host knows that all rows are guided

    @classmethod
    def of(
        cls,
        logits: Tensor,
        rows: Sequence[Row],
        held: Held,
        candidates: Candidates,
        bonus: Tensor,
        kl: Tensor,
    ) -> "Verdict":
        """Of a step with a bonus, [rows, k], which costs `kl` nats, [rows].

        logits: [batch, vocab]; held: the rows' places in it, and their parameters.
        Where strengths are planned, a row without any bonus keeps the base's logits, and so does
        one whose cost exceeds the maximum.
        """
        device = bonus.device
        finite = bonus.isfinite().all(-1)
        sound = finite
        faults = [row.fault is not None for row in rows]
        if any(faults):
            sound = sound & ~upload(torch.tensor(faults), device)
        if any(row.earlier is not None for row in rows):
            sound = _as_before(sound, rows)
        guided = sound
        plans = [row.plan for row in rows]
        if any(plan is not None for plan in plans):
            room = [math.inf if p is None else p.most - p.spent + ROUNDING for p in plans]
            most = upload(torch.tensor(room, dtype=torch.float64), device)
            planned = upload(torch.tensor([plan is not None for plan in plans]), device)
            idle = planned & candidates.several & ~bonus.any(-1)
            guided = sound & ~idle & (kl.double() <= most)
        if device.type == "cpu" and bool(guided.all()):
            return cls(finite, guided, torch.zeros_like(guided), held.stop, usual=True)
        ended = ~sound & held.ends & (logits[held.place, held.stop] > -torch.inf)
        return cls(finite, guided, ended, held.stop)


def _as_before(sound: Tensor, rows: Sequence[Row]) -> Tensor:
    """Which rows are sound, and all rows before them whose draft tokens they follow."""
    first: list[int] = []  # of the rows of each request
    for r, row in enumerate(rows):
        first.append(first[-1] if r and row.earlier is rows[r - 1] else r)
    start = upload(torch.tensor(first), sound.device)
    failed = (~sound).long().cumsum(0)  # up to each row
    return failed == (failed - (~sound).long())[start]
