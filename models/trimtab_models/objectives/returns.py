"""λ-returns: the targets of every objective that bootstraps from later values.

With γ = 1, the values v_0, v_1, … of the states along an answer, and its
reward R as the value of the ended answer v_end,

    G_t = (1 − λ) · v_{t+1} + λ · G_{t+1},   v_end = G_end = R.

Where rewards r_1, r_2, … arrive with the tokens, values are of the return to go: from a token on,
with the reward that the token brings itself, and without what came before. The candidates of a step
have the reward so far in common, so it cannot steer, and a network that had to learn it would only
err in it; a candidate's own reward differs between candidates and must be in its score. The last
token brings what the rewards of steps leave of R. For values after each token, v_t = v(x, y^{1:t}),

    G_t = r_t + (1 − λ) · v_{t+1} + λ · G_{t+1},   v_T = G_T = R − Σ_{i<T} r_i

The network's own value of the ended answer is never used. An answer ends with the last token of the
completion, be it EOS or the length limit. Source: Sutton and Barto, "Reinforcement Learning", 2nd
edition, eq. 12.2 and 12.3.
"""

import torch
from torch import Tensor

from trimtab_models.rows import Rows


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


def returns_to_go(values: Tensor, rows: Rows, decay: float, *, before: bool = False) -> Tensor:
    """The targets G of a batch's states, where rewards may arrive before the end.

    Values plus the reward so far are values of the whole return, which needs no rewards of steps.

    Args:
        values: [rows, steps] values of the return to go: after each token, its own reward
            included; or before each token.
        rows: the batch.
        decay: λ.
        before: whether values are those before each token; the ended answer has then no column.

    Returns:
        [rows, steps] G of the same states; without rewards of steps, `lambda_returns`.
    """
    so_far = rows.so_far()
    lengths = rows.completions + before
    return lambda_returns(values + so_far, rows.labels, lengths, decay) - so_far


def check_decay(decay: float) -> float:
    """λ itself; ValueError if it is not in [0, 1]."""
    if not 0 <= decay <= 1:
        raise ValueError(f"decay (λ) must be in [0, 1], not {decay}")
    return decay
