"""RAD: cumulative squared error, in which later prefixes have more weight.

    L = E_rows [ Σ_t t · (ρ(x, y^{1:t}) − r)² / S_T ],   S_T = Σ_t t = T·(T + 1)/2

If all answers have the same length, its minimiser is V^π0. If lengths differ, it is not: an answer
of T tokens has the weight 1/S_T at every prefix it shares with others, so that

    ρ(prefix) = E[ R / S_T | prefix ] / E[ 1 / S_T | prefix ]

which gives more weight to answers that end soon. Where rewards arrive before the end, r is the
return from y_t on, y_t's own reward included. Source: Deng and Raffel,
"Reward-Augmented Decoding: Efficient Controlled Text Generation With a Unidirectional Reward Model"
(arXiv 2310.09520), section 2, the cumulative squared error loss.
"""

from typing import ClassVar

import torch
from torch import Tensor

from trimtab_models.objectives.base import Objective
from trimtab_models.rows import Rows


class Rad(Objective):
    """The objective over rollouts."""

    name = "RAD"
    is_value: ClassVar[bool] = True
    to_go: ClassVar[bool] = True

    def loss(self, outputs: Tensor, rows: Rows, log_pi0: Tensor | None = None) -> Tensor:
        """Mean over rows of the weighted squared error; see Objective.loss."""
        values = rows.gather(outputs[..., 0])  # [rows, steps]
        places = torch.arange(1, values.shape[1] + 1, device=values.device)
        weights = places * rows.mask()  # [rows, steps]
        errors = (values - rows.to_go()).square()
        return ((weights * errors).sum(-1) / weights.sum(-1)).mean()
