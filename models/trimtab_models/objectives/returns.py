"""λ-returns: the targets of every objective that learns from its own later values.

With γ = 1 and no reward before the end, the values v_0, v_1, … of the states along an answer, and
its reward R as the value of the ended answer v_end,

    G_t = (1 − λ) · v_{t+1} + λ · G_{t+1},   v_end = G_end = R.

Nothing bootstraps from a network's guess of the ended answer. What ends it is the last token of the
completion, whether EOS or a limit of length. Source: Sutton and Barto, "Reinforcement Learning",
2nd edition, eq. 12.2 and 12.3.
"""

import torch
from torch import Tensor


def lambda_returns(values: Tensor, rewards: Tensor, lengths: Tensor, decay: float) -> Tensor:
    """The targets G of every state at once, as one product with the matrix of λ's powers.

    Args:
        values: [rows, steps] or [rows, steps, bins] what the states are worth, in their order.
        rewards: [rows] or [rows, bins] R of each whole answer.
        lengths: [rows] states of each row with the ended answer, whose own value is not read. For
            values after each of T tokens this is T, for values before each of them T + 1.
        decay: λ.

    Returns:
        G, like `values`; what stands past an answer's end is the reward again, and to be masked.
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
        raise ValueError(f"decay is λ, in [0, 1], not {decay}")
    return decay
