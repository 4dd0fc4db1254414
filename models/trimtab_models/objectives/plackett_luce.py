"""Plackett-Luce over K ranked completions, with aggregated bounded token rewards.

    r_t = σ(output after y^{1:t}) ∈ (0, 1),   f = f({r_t}) for each completion,
    L = Σ_{k=1}^{K} ( log Σ_{j≥k} exp f_j − f_k ),   completions best first; a mean over rankings

where f is one of (T tokens, temperature b)

    sum            Σ_t r_t
    average        C/T · Σ_t r_t
    soft-maximum   b · log Σ_t exp(r_t / b)
    soft-minimum   −b · log Σ_t exp(−r_t / b)

A sum grows with length, so a longer completion can win by its length alone; an average does not.
Source: Yang et al., "Preference-grounded Token-level Guidance for Language Model Fine-tuning",
section 2.1.
"""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from trimtab_models.objectives.base import DataKind, Objective
from trimtab_models.rows import Rows

Aggregation = Literal["sum", "average", "soft-maximum", "soft-minimum"]
AGGREGATIONS = ("sum", "average", "soft-maximum", "soft-minimum")


class PlackettLuce(Objective):
    """The objective over rankings; K may differ between rankings.

    Args:
        aggregation: f, as above.
        scale: C of the average; by default the mean length of the batch's completions.
        temperature: b of the soft maximum and minimum; the paper uses 2.
    """

    data: ClassVar[DataKind] = "ranked"

    def __init__(
        self,
        aggregation: Aggregation = "average",
        *,
        scale: float | None = None,
        temperature: float = 2.0,
    ) -> None:
        if aggregation not in AGGREGATIONS:
            raise ValueError(f"aggregation is one of {', '.join(AGGREGATIONS)}, not {aggregation}")
        if scale is not None and not scale > 0:
            raise ValueError(f"scale (C of the average) must be above 0, not {scale}")
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, not {temperature}")
        self.aggregation, self.scale, self.temperature = aggregation, scale, temperature
        self.name = f"Plackett-Luce, {aggregation}"

    def loss(self, outputs: Tensor, rows: Rows, log_pi0: Tensor | None = None) -> Tensor:
        """Mean −log P(ranking), in nats; see Objective.loss."""
        rewards = rows.gather(outputs[..., 0]).float().sigmoid()  # [rows, steps]
        return ranking_loss(self.aggregate(rewards, rows), rows.groups)

    def aggregate(self, rewards: Tensor, rows: Rows) -> Tensor:
        """f of each completion's token rewards: [rows, steps] → [rows]."""
        mask, lengths = rows.mask(), rows.completions
        if self.aggregation in ("sum", "average"):
            total = rewards.masked_fill(~mask, 0.0).sum(1)
            if self.aggregation == "sum":
                return total
            scale = lengths.float().mean() if self.scale is None else self.scale
            return scale * total / lengths
        sign = 1.0 if self.aggregation == "soft-maximum" else -1.0
        powers = (sign * rewards / self.temperature).masked_fill(~mask, -torch.inf)
        return sign * self.temperature * powers.logsumexp(1)

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
