"""The KL divergence of a tuned policy from its base along completions, exact at every step."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trimtab_models.rows import Rollout, Rows, pad


@torch.inference_mode()
def divergence(
    policy: Any, base: Any, rollouts: Sequence[Rollout], pad_id: int, batch_size: int = 64
) -> Tensor:
    """Σ_t KL(π(· | x, y^{1:t−1}) ‖ π0(· | x, y^{1:t−1})) of every completion, in nats.

    Its mean over completions of the policy is an unbiased estimate of KL(π ‖ π0) of whole answers,
    with less noise than the mean of log π(y | x) − log π0(y | x).

    Args:
        policy, base: language models with one vocabulary, in evaluation mode, on one device.
        rollouts: prompts and completions, each completion with its EOS if it has one.
        pad_id: any token; it is masked.
        batch_size: completions per forward.

    Returns:
        [rollouts] float64, on the host.

    Raises:
        ValueError: an empty prompt or completion.
    """
    sums = []
    for start in range(0, len(rollouts), batch_size):
        padded = pad(rollouts[start : start + batch_size], pad_id)
        rows = Rows(*(part.to(policy.device) for part in padded))
        log_p, log_q = (_log_probabilities(model, rows) for model in (policy, base))
        steps = (log_p.exp() * (log_p - log_q)).sum(-1)  # [rows, steps]
        sums.append((steps * rows.mask()).sum(-1).cpu())
    return torch.cat(sums)


def _log_probabilities(model: Any, rows: Rows) -> Tensor:
    """log π(· | x, y^{1:t−1}) for every t: [rows, steps, vocab] float64."""
    logits = model(input_ids=rows.input_ids, attention_mask=rows.attention_mask).logits
    return rows.before(logits).double().log_softmax(-1)
