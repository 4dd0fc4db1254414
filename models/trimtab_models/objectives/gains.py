"""Gains: how much the reward of the unfinished answer will still rise, discounted.

Where the reward can judge unfinished answers, r_t = r(x, y^{1:t}) is known for every prefix of a
rollout, and r_T = R. Each token has a gain g_t = r_t − r_{t−1}, with r_0 = 0, and a return

    G_t = g_t + γ·((1 − λ)·q_{t+1} + λ·G_{t+1}),   q_{T+1} = G_{T+1} = 0

of its own and the later gains, the latter without gradient. The network has two outputs:

    L = E_t [ (q(x, y^{1:t}) − G_t)² + (b(x, y^{1:t}) − r_{t−1})² ],   t = 1 .. T

and its score is their sum, b + q, which becomes one output when training ends. With γ = 1 it is the
mean reward V(x, y^{1:t}). A lower γ counts late gains less, which a token hardly decides but which
are most of the noise. The candidates of a step have r_{t−1} in common, so it cannot steer; to learn
it apart takes its variance out of the targets of q, and keeps q from rating tokens by the answers
in which they occur.

Where rewards of steps are known, r_t is their sum so far. With γ = 1 this is then td-lambda of the
return to go, and its score, unlike that of td-lambda, the mean of the whole return.

Rewards of prefixes as rewards of steps: Ng et al., "Policy Invariance Under Reward Transformations"
(ICML 1999), with r_t as the potential. A discount against variance: Schulman et al., "High-
Dimensional Continuous Control Using Generalized Advantage Estimation" (arXiv 1506.02438).
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from trimtab_models.networks import Head
from trimtab_models.objectives.base import Objective, completions
from trimtab_models.objectives.returns import check_decay
from trimtab_models.rows import Rows


class Gains(Objective):
    """The objective over rollouts with `prefix_rewards` or rewards of steps.

    Args:
        discount: γ, in [0, 1]; 0 counts the gain of the token alone.
        decay: λ, in [0, 1]; 1 counts the gains of the answer alone.
    """

    head: ClassVar[Head] = "scalars"

    def __init__(self, discount: float = 0.9, decay: float = 1.0) -> None:
        if not 0 <= discount <= 1:
            raise ValueError(f"discount (γ) must be in [0, 1], not {discount}")
        self.discount, self.decay = discount, check_decay(decay)
        self.name = f"gains, γ={discount:g}" + (f", λ={decay:g}" if decay < 1 else "")

    def collate(self, items: Sequence[Any], pad_id: int) -> Rows:
        """Padded rows.

        Raises:
            ValueError: the rewards of an answer's prefixes are not known.
        """
        if any(
            not (side.prefix_rewards or side.step_rewards)
            for item in items
            for side in completions(item)
        ):
            raise ValueError(
                "gains needs the rewards of unfinished answers ('prefix_rewards') or of steps "
                "('rewards', 'spans'); sample with `trimtab rollout --prefix-rewards`, or train "
                "td-lambda, which needs none."
            )
        return super().collate(items, pad_id)

    def loss(self, outputs: Tensor, rows: Rows, log_pi0: Tensor | None = None) -> Tensor:
        """Mean squared errors of every prefix's two outputs; see Objective.loss."""
        gains, before = rows.gather(outputs).float().unbind(-1)  # [rows, steps] each
        known = pad(rows.prefix_rewards, (1, 0))  # [rows, steps + 1], r_0 first
        mask = rows.mask()
        targets = self.returns(gains.detach(), known.diff() * mask, mask)
        errors = (gains - targets).square() + (before - known[:, :-1]).square()
        return errors[mask].mean()

    def returns(self, values: Tensor, gains: Tensor, mask: Tensor) -> Tensor:
        """G of every token, as one product with the matrix of the powers of γλ: [rows, steps].

        values: q. gains: g, 0 after an answer's end. mask: True up to the end.
        """
        later = pad((values * mask)[:, 1:], (0, 1))
        terms = gains + self.discount * (1 - self.decay) * later
        steps = torch.arange(values.shape[1], device=values.device)
        ahead = steps[None] - steps[:, None]
        powers = (self.discount * self.decay) ** ahead.clamp(min=0).to(values)
        return terms @ torch.where(ahead >= 0, powers, 0.0).T

    def info(self) -> dict[str, Any]:
        """Whether scores are mean rewards, which they are without a discount."""
        return {"is_value": self.discount == 1}
