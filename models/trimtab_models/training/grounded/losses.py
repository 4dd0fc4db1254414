"""The two losses of a language model under token rewards r_t ∈ (0, 1).

REINFORCE with the gradient of the entropy H, over tokens that the model generated,

    L = − E_t [ r_t · log π(y_t | s_t) + α · H(π(· | s_t)) ]

and reward-weighted maximum likelihood, over supervised sequences, with self-normalised weights,

    L = − E_y Σ_t w_t · log π(y_t | s_t),   w_t = r_t / Σ_t' r_t'

With equal rewards this is the plain likelihood, a mean over each sequence's tokens. Source: Yang et
al., "Preference-grounded Token-level Guidance for Language Model Fine-tuning", section 2.2.
"""

import torch
from torch import Tensor

from trimtab_models.rows import Rows


def reinforce(logits: Tensor, rows: Rows, rewards: Tensor, alpha: float) -> Tensor:
    """The REINFORCE loss, a scalar in nats.

    Args:
        logits: [rows, length, vocab] the language model's.
        rows: prompts and generations.
        rewards: [rows, steps] r_t of each generated token, without gradient.
        alpha: α; the paper uses 1/8.
    """
    log_pi = rows.before(logits).float().log_softmax(-1)  # [rows, steps, vocab]
    taken = log_pi.gather(-1, rows.tokens()[..., None])[..., 0]
    entropy = -(log_pi.exp() * log_pi).sum(-1)
    mask = rows.mask()
    gains = (rewards * taken + alpha * entropy).masked_fill(~mask, 0.0)
    return -gains.sum() / mask.sum()


def weighted_mle(logits: Tensor, rows: Rows, rewards: Tensor) -> Tensor:
    """The reward-weighted maximum likelihood, a scalar in nats; arguments as for `reinforce`."""
    taken = rows.chosen(logits.float().log_softmax(-1))  # [rows, steps]
    weights = torch.where(rows.mask(), rewards, 0.0)
    weights = weights / weights.sum(1, keepdim=True)
    return -(weights * taken).sum(1).mean()
