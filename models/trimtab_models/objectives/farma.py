"""FaRMA: one call scores every next token; a prefix has the value of its best continuation.

    L = − log σ( Q_w − Q_l ) + w · E_t ( Q(x, y^{<t}, y_t) − max_v Q(x, y^{1:t}, v) )²,   t < T

where Q_w and Q_l are Q(x, y^{<T}, y_T), of the last tokens: Bradley-Terry on whole completions.
The maximum has no gradient. The authors alternate steps on the two terms; here they are one sum.
Source: Rashid et al., "Towards Cost-Effective Reward Guided Text Generation".
"""

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from trimtab_models.networks import Head
from trimtab_models.objectives.base import DataKind, Objective
from trimtab_models.rows import Rows


class Farma(Objective):
    """The objective over pairs.

    Args:
        weight: w, the weight of the squared error before the end.
    """

    data: ClassVar[DataKind] = "pairs"
    head: ClassVar[Head] = "vocabulary"

    def __init__(self, weight: float = 1.0) -> None:
        if not weight > 0:
            raise ValueError(f"weight of the squared error must be above 0, not {weight}")
        self.weight = weight
        self.name = "FaRMA"

    def loss(self, outputs: Tensor, rows: Rows, log_pi0: Tensor | None = None) -> Tensor:
        """Mean over pairs in nats, and over inner tokens; see Objective.loss."""
        values = rows.chosen(outputs)  # [2 · pairs, steps] Q of the completion's tokens
        ends = values[:, -1]
        best = rows.gather(outputs.detach().amax(-1))  # [2 · pairs, steps] max Q of the next token
        steps = torch.arange(values.shape[1], device=values.device)
        inner = steps[None] < rows.completions[:, None] - 1
        errors = (values - best).square() * inner
        preference = -logsigmoid(ends[0::2] - ends[1::2]).mean()
        return preference + self.weight * errors.sum() / inner.sum().clamp(min=1)
