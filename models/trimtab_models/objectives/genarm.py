"""The autoregressive reward model of GenARM: a language model whose log-probability is the reward.

    L = − log σ( β_r · Σ_t log π_r(y_w,t | x, y_w^{<t}) − β_r · Σ_t log π_r(y_l,t | x, y_l^{<t}) )

It is served as a log-ratio scorer without a reference, α·log π_r(v | prefix), with α = β_r, so that
a guidance strength of 1 adds the reward in log-odds of preference, as with Bradley-Terry; the
paper's rule log π0 + log π_r / β is the strength 1 / (β · β_r). Source: Xu et al., "GenARM: Reward
Guided Generation with Autoregressive Reward Model for Test-time Alignment", section 4.
"""

from typing import Any, ClassVar

from torch import Tensor
from torch.nn.functional import logsigmoid

from trimtab_models.networks import Head
from trimtab_models.objectives.base import DataKind, Objective
from trimtab_models.rows import Rows


class GenArm(Objective):
    """The objective over pairs.

    Args:
        beta: β_r, above 0; the paper uses 0.05.
    """

    data: ClassVar[DataKind] = "pairs"
    head: ClassVar[Head] = "language"

    def __init__(self, beta: float = 0.05) -> None:
        if not beta > 0:
            raise ValueError(f"beta (β_r) must be above 0, not {beta}")
        self.beta = beta
        self.name = f"autoregressive reward (GenARM), β_r={beta:g}"

    def loss(self, outputs: Tensor, rows: Rows, log_pi0: Tensor | None = None) -> Tensor:
        """Mean −log σ over pairs, in nats; see Objective.loss."""
        rewards = self.beta * log_likelihoods(outputs, rows)
        return -logsigmoid(rewards[0::2] - rewards[1::2]).mean()

    def info(self) -> dict[str, Any]:
        """The factor of its log-probabilities when served."""
        return super().info() | {"alpha": self.beta}


def log_likelihoods(logits: Tensor, rows: Rows) -> Tensor:
    """log π(y | x) of each completion: [rows, length, vocab] → [rows], in nats."""
    taken = rows.chosen(logits.float().log_softmax(-1))  # [rows, steps]
    return taken.masked_fill(~rows.mask(), 0.0).sum(1)
