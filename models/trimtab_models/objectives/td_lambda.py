"""TD(λ) regression of a value: the estimator of VAS.

    L = E_t ( V(x, y^{1:t}) − G_t )²,   t = 1 .. T

with γ = 1, no reward before the end, and the λ-return towards the reward R of the whole answer

    G_T = R,   G_{T−1} = R,   G_t = (1 − λ) · V(x, y^{1:t+1}) + λ · G_{t+1}   (V without gradient).

The ended answer's value is R itself, so nothing bootstraps from the network's guess of it. λ = 1 is
the squared error of every prefix to the final reward. Source: Han et al., "Value Augmented Sampling
for Language Model Alignment and Personalization"; Sutton and Barto, eq. 12.2.
"""

import torch
from torch import Tensor

from trimtab_models.objectives.base import Objective
from trimtab_models.rows import Rows


def lambda_returns(values: Tensor, rewards: Tensor, lengths: Tensor, decay: float) -> Tensor:
    """The targets G of every prefix at once, as one product with the matrix of λ's powers.

    Args:
        values: [rows, steps] V of the first 1, 2, ... tokens.
        rewards: [rows] R of each whole answer.
        lengths: [rows] tokens of each answer, T.
        decay: λ.

    Returns:
        [rows, steps]; what stands past an answer's end is the reward again, and to be masked.
    """
    steps = torch.arange(values.shape[1], device=values.device)
    ahead = steps[None] - steps[:, None] - 1  # [steps, steps] prefixes between i and j
    weights = torch.where(ahead >= 0, (1 - decay) * decay ** ahead.clamp(min=0).to(values), 0.0)
    end = lengths[:, None] - 1  # [rows, 1]
    before_end = torch.where(steps[None] < end, values, 0.0)
    reach = decay ** (end - steps[None] - 1).clamp(min=0).to(values)  # [rows, steps]
    return before_end @ weights.T + reach * rewards[:, None]


class TdLambda(Objective):
    """The objective over rollouts.

    Args:
        decay: λ, in [0, 1]; the paper uses 0.95 to 0.98.
    """

    def __init__(self, decay: float = 0.95) -> None:
        if not 0 <= decay <= 1:
            raise ValueError(f"λ is in [0, 1], not {decay}")
        self.decay = decay
        self.name = f"TD(λ), λ={decay:g}"

    def loss(self, outputs: Tensor, rows: Rows, log_pi0: Tensor | None = None) -> Tensor:
        """Mean squared error of every prefix's value to its λ-return; see Objective.loss."""
        values = rows.gather(outputs[..., 0])  # [rows, steps]
        targets = lambda_returns(values.detach(), rows.labels, rows.completions, self.decay)
        return (values - targets)[rows.mask()].square().mean()
