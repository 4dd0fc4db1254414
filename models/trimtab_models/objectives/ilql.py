"""ILQL: implicit Q-learning on rollouts; served as Q − V.

    L = E_t [ ( Q(s_{t−1}, y_t) − sg V(s_t) )²  +  |τ − 1(u_t < 0)| · u_t²
              + α · ( log Σ_v exp Q(s_{t−1}, v) − Q(s_{t−1}, y_t) ) ]

    u_t = sg Q(s_{t−1}, y_t) − V(s_{t−1}),   V(s_T) = R,   s_t = (x, y^{1:t}),   t = 1 .. T

V is the τ-expectile of Q over the tokens in the data: for τ = ½ their mean, so that Q and V are
those of π0; for τ → 1 their maximum, so that Q and V are those of the best policy in the data. The
conservative term lowers Q of tokens that are not in the data. Where rewards arrive before the end,
the target of Q is r_t + V(s_t), and Q − V still adds up to the gain of the whole return. Here γ is
1, and a stopped gradient (sg) replaces the paper's slowly moving copy of Q. Source: Snell et al.,
"Offline RL for Natural Language Generation with Implicit Language Q Learning" (arXiv 2206.11871),
section 4.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from trimtab_models.networks import Head
from trimtab_models.objectives.base import Objective
from trimtab_models.objectives.returns import returns_to_go
from trimtab_models.rows import Rows


class Ilql(Objective):
    """The objective over rollouts; the head's outputs are Q of every token, and V as the last.

    Args:
        expectile: τ, in (0, 1).
        conservative: α, the weight of the conservative term, at least 0.
    """

    head: ClassVar[Head] = "vocabulary+value"

    def __init__(self, expectile: float = 0.7, conservative: float = 0.1) -> None:
        if not 0 < expectile < 1:
            raise ValueError(f"expectile (τ) must be in (0, 1), not {expectile}")
        if not conservative >= 0:
            raise ValueError(f"conservative is a weight and must be at least 0, not {conservative}")
        self.expectile, self.conservative = expectile, conservative
        self.name = f"ILQL, τ={expectile:g}"

    def loss(self, outputs: Tensor, rows: Rows, log_pi0: Tensor | None = None) -> Tensor:
        """Mean of the three terms over all tokens; see Objective.loss."""
        q = outputs[..., :-1]
        values = rows.before(outputs[..., -1])  # [rows, steps]
        chosen = rows.chosen(q)  # [rows, steps]
        targets = returns_to_go(values.detach(), rows, 0.0, before=True)
        gap = chosen.detach() - values
        weight = torch.where(gap < 0, 1 - self.expectile, self.expectile)
        terms = (chosen - targets).square() + weight * gap.square()
        if self.conservative:
            terms = terms + self.conservative * (rows.before(q.logsumexp(-1)) - chosen)
        return terms[rows.mask()].mean()

    def info(self) -> dict[str, Any]:
        """Advantages add up: Σ_t (Q − V) is the answer's gain over V of its prompt."""
        return super().info() | {"adds_up": True}

    def combine(self, outputs: Tensor) -> Tensor:
        """Q − V; see Objective.combine."""
        return outputs[..., :-1] - outputs[..., -1:]
