"""The KL divergence of a policy from its base along completions, exact at every step."""

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
        log_p, log_q = (log_distributions(model, rows) for model in (policy, base))
        steps = (log_p.exp() * (log_p - log_q)).sum(-1)  # [rows, steps]
        sums.append((steps * rows.mask()).sum(-1).cpu())
    return torch.cat(sums)


@torch.inference_mode()
def warping(
    base: Any,
    rollouts: Sequence[Rollout],
    pad_id: int,
    temperature: float,
    top_p: float,
    batch_size: int = 64,
) -> Tensor:
    """The same of the base itself at a temperature, or with its least likely tokens cut.

    Args:
        temperature, top_p: of sampling, see `warp`.

    Returns:
        [rollouts] float64 nats, on the host.
    """
    sums = []
    for start in range(0, len(rollouts), batch_size):
        rows = Rows(
            *(part.to(base.device) for part in pad(rollouts[start : start + batch_size], pad_id))
        )
        log_q = log_distributions(base, rows)
        log_p = warp(log_q, temperature, top_p)
        possible = log_p > -torch.inf
        steps = torch.where(possible, log_p.exp() * (log_p - log_q), 0.0).sum(-1)  # [rows, steps]
        sums.append((steps * rows.mask()).sum(-1).cpu())
    return torch.cat(sums)


def warp(log_pi: Tensor, temperature: float, top_p: float) -> Tensor:
    """log-probabilities at a temperature, then of the smallest set of tokens that reaches top-p.

    Args:
        log_pi: [..., vocab].
        temperature: above 0.
        top_p: above 0, at most 1.
    """
    log_p = (log_pi / temperature).log_softmax(-1)
    if top_p == 1:
        return log_p
    ordered, order = log_p.sort(-1, descending=True)
    before = ordered.exp().cumsum(-1) - ordered.exp()  # mass of the more likely tokens
    cut = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= top_p)
    return log_p.masked_fill(cut, -torch.inf).log_softmax(-1)


@torch.inference_mode()
def log_probabilities(
    model: Any, rollouts: Sequence[Rollout], pad_id: int, batch_size: int = 64
) -> Tensor:
    """log π(y | x) of every completion, [rollouts] float64 nats, on the host."""
    sums = []
    for start in range(0, len(rollouts), batch_size):
        padded = pad(rollouts[start : start + batch_size], pad_id)
        rows = Rows(*(part.to(model.device) for part in padded))
        log_pi = log_distributions(model, rows)
        taken = log_pi.gather(-1, rows.tokens()[..., None])[..., 0]  # [rows, steps]
        sums.append((taken * rows.mask()).sum(-1).cpu())
    return torch.cat(sums)


def log_distributions(model: Any, rows: Rows) -> Tensor:
    """log π(· | x, y^{1:t−1}) for every t: [rows, steps, vocab] float64."""
    logits = model(input_ids=rows.input_ids, attention_mask=rows.attention_mask).logits
    return rows.before(logits).double().log_softmax(-1)
