"""Plackett-Luce over K ranked completions, with aggregated bounded token rewards.

    r_t = σ(output after y^{1:t}) ∈ (0, 1),   f = f({r_t}) for each completion,
    L = Σ_{k=1}^{K} ( log Σ_{j≥k} exp f_j − f_k ),   completions best first; a mean over rankings

where f is one of (T tokens; C: the mean length of the K completions of the ranking; temperature b)

    sum            Σ_t r_t
    average        C/T · Σ_t r_t
    soft-maximum   C · b · log Σ_t exp(r_t / b)
    soft-minimum   −C · b · log Σ_t exp(−r_t / b)

A sum grows with length, so a longer completion can win by its length alone; an average does not. C
brings every f to the scale of a sum. Source: Yang et al., "Preference-grounded Token-level Guidance
for Language Model Fine-tuning", section 2.1, eq. 2 to 4.
"""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from trimtab_models.objectives.base import DataKind, Objective
from trimtab_models.rows import Rows

Aggregation = Literal["sum", "average", "soft-maximum", "soft-minimum"]
AGGREGATIONS = ("sum", "average", "soft-maximum", "soft-minimum")
TEMPERATURE = 2.0


class PlackettLuce(Objective):
    """The objective over rankings; K may differ between rankings.

    Args:
        aggregation: f, as above.
        scale: C, the same for all rankings; by default that of each ranking, as in the paper. A sum
            has none.
        temperature: b of the soft maximum and minimum, by default 2, as in the paper.
    """

    data: ClassVar[DataKind] = "ranked"

    def __init__(
        self,
        aggregation: Aggregation = "average",
        *,
        scale: float | None = None,
        temperature: float | None = None,
    ) -> None:
        if aggregation not in AGGREGATIONS:
            raise ValueError(f"aggregation is one of {', '.join(AGGREGATIONS)}, not {aggregation}")
        if scale is not None and not scale > 0:
            raise ValueError(f"scale (C) must be above 0, not {scale}")
        if scale is not None and aggregation == "sum":
            raise ValueError("a sum has no scale (C); leave scale out")
        if temperature is not None and not temperature > 0:
            raise ValueError(f"temperature must be above 0, not {temperature}")
        if temperature is not None and not aggregation.startswith("soft"):
            raise ValueError(f"{aggregation} has no temperature; leave temperature out")
        self.aggregation, self.scale = aggregation, scale
        self.temperature = TEMPERATURE if temperature is None else temperature
        self.name = f"Plackett-Luce, {aggregation}"

    def loss(self, outputs: Tensor, rows: Rows, log_pi0: Tensor | None = None) -> Tensor:
        """Mean −log P(ranking), in nats; see Objective.loss."""
        rewards = rows.gather(outputs[..., 0]).float().sigmoid()  # [rows, steps]
        return ranking_loss(self.aggregate(rewards, rows), rows.groups)

    def aggregate(self, rewards: Tensor, rows: Rows) -> Tensor:
        """f of each completion's token rewards: [rows, steps] → [rows]."""
        mask = rows.mask()
        if self.aggregation == "sum":
            return rewards.masked_fill(~mask, 0.0).sum(1)
        scale = self.scales(rows)
        if self.aggregation == "average":
            return scale * rewards.masked_fill(~mask, 0.0).sum(1) / rows.completions
        b = self.temperature if self.aggregation == "soft-maximum" else -self.temperature
        return scale * b * (rewards / b).masked_fill(~mask, -torch.inf).logsumexp(1)

    def scales(self, rows: Rows) -> Tensor:
        """C of each completion's ranking, [rows] float32."""
        lengths = rows.completions.float()
        if self.scale is not None:
            return torch.full_like(lengths, self.scale)
        _, ranking, counts = rows.groups.unique_consecutive(return_inverse=True, return_counts=True)
        sums = lengths.new_zeros(len(counts)).index_add_(0, ranking, lengths)
        return (sums / counts)[ranking]

    def info(self) -> dict[str, Any]:
        """The score is σ of the head's output."""
        return super().info() | {"link": "sigmoid"}


def ranking_loss(scores: Tensor, groups: Tensor) -> Tensor:
    """Mean −log P(ranking) of Plackett-Luce.

    Args:
        scores: [rows] log-weights; rows of one ranking are adjacent, the best first.
        groups: [rows] the ranking that each row belongs to.
    """
    _, counts = groups.unique_consecutive(return_counts=True)
    numbers = torch.arange(len(counts), device=scores.device).repeat_interleave(counts)
    ranks = torch.arange(len(scores), device=scores.device) - (counts.cumsum(0) - counts)[numbers]
    # Padding of shorter rankings has no weight; not −∞, whose gradient is NaN.
    table = scores.new_full((len(counts), int(counts.max())), -1e9)
    table[numbers, ranks] = scores
    remaining = table.flip(1).logcumsumexp(1).flip(1)  # over this place and all later ones
    return (remaining[numbers, ranks] - scores).sum() / len(counts)
