"""How the KL of a step divides among the scorers and principles that caused it.

With bonus a = Σ_i a_i and J_i = E_π[a_i] − E_π0[a_i], all J_i sum up to KL(π ‖ π0) + KL(π0 ‖ π). So
each part gets the share J_i / Σ_j J_j of the step's nats. A part is negative if it pulls against
the others. Where the tail is cut, π0 is the base on the candidates: what the cut costs is no part.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.candidates import Candidates
from trimtab.fusion import tilted
from trimtab.rows import Row
from trimtab.scores import Scores


@dataclass(frozen=True)
class Shares:
    """The shares of a step."""

    names: Sequence[str]
    table: Tensor  # [names, rows]; 0 for rows that do not use a scorer

    def of(self, row: int, nats: float) -> dict[str, float]:
        """A row's parts of some nats; only those that are not 0."""
        shares = zip(self.names, self.table[:, row].tolist(), strict=True)
        return {name: share * nats for name, share in shares if share}


def shares(
    rows: Sequence[Row],
    step: Sequence[Scores],
    scales: Sequence[tuple[Tensor, Tensor]],
    candidates: Candidates,
    bonus: Tensor,
    tail_mean: Tensor,
) -> Shares | None:
    """The shares of each part; None if no row has a principle or plans its strengths, so that no
    other step pays for it.

    step, scales: see scores.bonus_of, whose result is `bonus`, [rows, k].
    """
    if not any(row.params.said or row.params.planned for row in rows) or not step:
        return None
    moved = tilted(candidates, bonus, tail_mean)
    moved = moved - tilted(candidates, torch.zeros_like(bonus), tail_mean)  # [rows, k + 1]
    sums: dict[str, Tensor] = {}
    for scores, (c, mean) in zip(step, scales, strict=True):
        parts = c[..., None] * (scores.table - mean[..., None])  # [names, rows, k]
        for name, part in zip(scores.names, parts, strict=True):
            sums[name] = sums.get(name, 0) + (moved * _with_tail(part, candidates)).sum(-1)
    table = torch.stack(list(sums.values()))
    return Shares(list(sums), (table / table.sum(0)).nan_to_num(0.0, 0.0, 0.0))


def _with_tail(part: Tensor, candidates: Candidates) -> Tensor:
    """A part of the bonus, [rows, k], and its mean for the tail: [rows, k + 1]."""
    if candidates.whole:
        return part
    return torch.cat((part.where(candidates.real, 0.0), candidates.mean(part)[:, None]), 1)


def added(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The sums over steps, by name."""
    sums: dict[str, float] = {}
    for parts in steps:
        for name, nats in parts.items():
            sums[name] = sums.get(name, 0.0) + nats
    return sums
