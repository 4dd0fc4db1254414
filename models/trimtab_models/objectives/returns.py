"""λ-returns: the targets of every objective that bootstraps from later values.

With γ = 1, no reward before the end, the values v_0, v_1, … of the states along an answer, and its
reward R as the value of the ended answer v_end,

    G_t = (1 − λ) · v_{t+1} + λ · G_{t+1},   v_end = G_end = R.

The network's own value of the ended answer is never used. An answer ends with the last token of the
completion, be it EOS or the length limit. Source: Sutton and Barto, "Reinforcement Learning", 2nd
edition, eq. 12.2 and 12.3.
"""

import torch
from torch import Tensor


def lambda_returns(values: Tensor, rewards: Tensor, lengths: Tensor, decay: float) -> Tensor:
    """The targets G of all states, as one product with the matrix of λ's powers.

    Args:
        values: [rows, steps] or [rows, steps, bins] values of the states, in their order.
        rewards: [rows] or [rows, bins] R of each whole answer.
        lengths: [rows] number of states with the ended answer, whose own value is not read. For
            values after each of T tokens this is T, for values before each of them T + 1.
        decay: λ.

    Returns:
        G, in the shape of `values`; entries after an answer's end repeat the reward; mask them.
    """
    steps = torch.arange(values.shape[1], device=values.device)
    ahead = steps[None] - steps[:, None] - 1  # [steps, steps] states between i and j
    weights = torch.where(ahead >= 0, (1 - decay) * decay ** ahead.clamp(min=0).to(values), 0.0)
    end = lengths[:, None] - 1  # [rows, 1]
    reach = decay ** (end - steps[None] - 1).clamp(min=0).to(values)  # [rows, steps]
    open_states = steps[None] < end  # [rows, steps]
    if values.dim() > 2:
        open_states, reach = open_states[..., None], reach[..., None]
    before_end = torch.where(open_states, values, 0.0)
    return torch.einsum("ts,rs...->rt...", weights, before_end) + reach * rewards[:, None]


def check_decay(decay: float) -> float:
    """λ itself; ValueError if it is not in [0, 1]."""
    if not 0 <= decay <= 1:
        raise ValueError(f"decay (λ) must be in [0, 1], not {decay}")
    return decay
