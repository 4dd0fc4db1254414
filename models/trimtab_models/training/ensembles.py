"""Ensembles: several scalar heads on one network, each trained on its own resample of the prompts.

Head i learns from each prompt c_i times, c_i ~ Poisson(1): the bootstrap of a stream of data
(Oza and Russell 2001), whose sum over the heads is what each prompt is worth. The count belongs to
the prompt and the seed, so that it is the same in every epoch, and all answers to a prompt are
drawn together. The heads begin at different small weights and share all that is below:

    L = mean_i  loss(head i, its resample of the batch)

So their spread is that of the resamples: an estimate of how much the mean depends on the data that
happened to be there (Osband et al., "Deep Exploration via Bootstrapped DQN", arXiv 1602.04621).
What the common network gets wrong, all of them get wrong.
"""

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from trimtab_models.objectives import Objective
from trimtab_models.rows import Rows


def counts(prompts: Sequence[Sequence[int]], heads: int, seed: int) -> Tensor:
    """How often each head learns from each item, [heads, items] int64, by the item's prompt."""
    drawn = [
        np.random.default_rng([seed, zlib.crc32(np.array(prompt, dtype=np.int64).tobytes())])
        for prompt in prompts
    ]
    return torch.from_numpy(np.stack([one.poisson(1.0, heads) for one in drawn], axis=1))


def loss(
    objective: Objective,
    outputs: Tensor,
    rows: Rows,
    counts: Tensor,
    log_pi0: Tensor | None = None,
) -> Tensor:
    """The mean of each head's loss on its resample; heads without an item are left out.

    Args:
        objective: with the head `scalar`.
        outputs: [rows, length, heads].
        rows: of a batch; rows of one item are adjacent.
        counts: [heads, items] as of `counts`.
        log_pi0: see Objective.loss.
    """
    losses = []
    for head, own in enumerate(counts):
        index, groups = _resampled(rows.groups, own)
        if len(index):
            part = _trimmed(Rows(*(field[index] for field in rows))._replace(groups=groups))
            base = None if log_pi0 is None else log_pi0[index]
            losses.append(objective.loss(outputs[index, :, head : head + 1], part, base))
    if not losses:  # a tiny batch that no head learns from
        return 0.0 * outputs.sum()
    return torch.stack(losses).mean()


def _trimmed(rows: Rows) -> Rows:
    """The rows, with the numbers of each token as far as their longest completion."""
    steps = int(rows.completions.max())
    return rows._replace(
        log_ratios=rows.log_ratios[:, :steps],
        prefix_rewards=rows.prefix_rewards[:, :steps],
        step_rewards=rows.step_rewards[:, :steps],
    )


def _resampled(groups: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of each item as often as it counts, and the numbers of these copies, as new items.

    groups: [rows] the item of each row, rising. counts: [items].
    """
    items = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)  # [copies]
    members = [(groups == item).nonzero()[:, 0] for item in items]
    if not members:
        return items, items
    sizes = torch.tensor([len(own) for own in members], device=groups.device)
    copies = torch.arange(len(members), device=groups.device)
    return torch.cat(members), copies.repeat_interleave(sizes)
