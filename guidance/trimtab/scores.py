"""The scores of one step, on the device that holds the logits, and the bonus that they make."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trimtab.candidates import Candidates
from trimtab.scoring.pool import Ids
from trimtab_models.transfers import upload


@dataclass
class Scores:
    """Scores of some scorers for the same rows of a step."""

    names: Sequence[str]
    members: Sequence[int]  # the rows that they score
    table: Tensor  # [names, rows, k] float32; 0 where nothing is scored

    def of(self, row: int) -> dict[str, Tensor]:
        """A row's scores by name, [k] each; empty if it has none."""
        return dict(zip(self.names, self.table[:, row], strict=True)) if row in self.members else {}


@dataclass(frozen=True)
class StepScores:
    """The scores of a row's last step; they often include the row's last token."""

    position: int
    tokens: Ids
    row: int
    step: Sequence[Scores]  # of all rows, on the host

    def of(self, name: str, sequence: Ids) -> float | None:
        """A scorer's score of `sequence`, if its last token was a candidate of this step."""
        if self.position != len(sequence) - 1:
            return None
        [places] = np.nonzero(self.tokens == sequence[-1])
        for scores in self.step:
            values = scores.of(self.row).get(name)
            if values is not None and len(places):
                return float(values[places[0]])
        return None


def scored(
    names: Sequence[str],
    flat: Tensor,
    members: Sequence[int],
    member: Tensor,
    candidates: Candidates,
) -> Scores:
    """Scores from packed ones, [names, Σ candidates of some rows].

    members: these rows, in order; member: the same on the device, [rows] bool.
    """
    rows, width = candidates.logprobs.shape
    if len(members) == rows and flat.shape[1] == rows * width:
        return Scores(names, members, flat.view(-1, rows, width))
    table = flat.new_zeros(len(flat), rows, width)
    table.masked_scatter_(candidates.real & member[:, None], flat)  # in row order, as packed
    return Scores(names, members, table)


def planned(name: str, values: Tensor, like: Tensor) -> Scores:
    """Scores at planned strengths, on the host: [rows, at most k], NaN where there are none."""
    members = (~values[:, 0].isnan()).nonzero()[:, 0].tolist()
    table = torch.zeros(1, *like.shape)
    table[0, :, : values.shape[1]] = values.nan_to_num()
    return Scores([name], members, upload(table, like.device))


def bonus_of(
    step: Sequence[Scores], scales: Sequence[tuple[Tensor, Tensor]], like: Tensor
) -> Tensor:
    """Σ_i c_i·(s_i − mean_i), [rows, k] float32.

    scales: c and mean of each of `step`, [names, rows] each; both are 0 for rows that do not use a
    scorer. like: [rows, k], on the device.
    """
    bonus = torch.zeros_like(like)
    for scores, (c, mean) in zip(step, scales, strict=True):
        for part in c[..., None] * (scores.table - mean[..., None]):
            bonus += part
    return bonus
