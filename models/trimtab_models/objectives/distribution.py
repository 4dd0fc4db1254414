"""Return distribution: a histogram of the rewards of the answers that continue a prefix.

    L = − E_t Σ_b h_t(b) · log p_b(x, y^{1:t}),   t = 1 .. T,   p = softmax over bins

with bins spaced evenly over a support [low, high]. The target h_t is the reward as a two-hot
histogram (split over the two nearest bins, so that its mean is the reward), or, for λ < 1, a
mixture with the network's own histograms of the later prefixes, without gradient:

    h_t = (1 − λ) · p(x, y^{1:t+1}) + λ · h_{t+1},   h_T = two-hot(R)

Where rewards arrive before the end, R is the return to go: from y_t on, with y_t's own reward. For
λ = 1 that is only another target. For λ < 1 a shift of histograms between bins would be needed,
which widens them, so it is refused.

An answer sampled with soft-value guidance of strength c is treated as a sample of π0·exp(c·R)/Z,
whose returns are the base's, tilted: for such a row p(b)·exp(c·R_b), normalised, replaces p. So
answers that guidance reaches, but the base seldom, also train the base's histogram. Guidance is not
exact, so where log π/π0 of its tokens is known (and λ = 1) the loss of a prefix is weighted by

    u_t = exp(c·R − Σ_{s>t} log π(y_s)/π0(y_s) − Λ_t),   Λ_t = log Σ_b p_b·exp(c·R_b), no gradient

clipped at `HEAVIEST`: the importance weight of the rest of the answer under the tilted base. It is
1 where guidance is exact, and for the base's own answers. Λ_t is a factor common to all rests of a
prefix, so the minimiser is exact even while p is wrong.

The minimiser is the distribution of two-hot rewards under π0, for every λ: exact for rewards on the
bins; between bins, means are exact and (1/c)·log E exp(c·R) is too high by at most |c|·w²/8 for
bins w apart. Sources: Bellemare et al., "A Distributional Perspective on Reinforcement Learning"
(ICML 2017), section 4; Farebrother et al., "Stop Regressing" (arXiv 2403.03950), section 3, for
two-hot targets.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from trimtab_models.networks import Head, next_histograms
from trimtab_models.objectives.base import Objective
from trimtab_models.objectives.returns import check_decay, lambda_returns
from trimtab_models.rows import Rows

HEAVIEST = 5.0


def two_hot(rewards: Tensor, support: tuple[float, float], bins: int) -> Tensor:
    """Histograms whose mean is the reward: [...] → [..., bins]; rewards within the support."""
    low, high = support
    place = (rewards - low) / (high - low) * (bins - 1)
    apart = place[..., None] - torch.arange(bins, device=rewards.device)
    return (1 - apart.abs()).clamp(min=0)


def importance(log_p: Tensor, tilt: Tensor, rows: Rows) -> Tensor:
    """u_t of every prefix, [rows, steps]; 1 where log π/π0 is unknown.

    log_p: [rows, steps, bins] of the base's returns. tilt: [rows, 1, bins] c·R_b.
    """
    rest = rows.log_ratios.sum(1, keepdim=True) - rows.log_ratios.cumsum(1) + rows.rests[:, None]
    log_u = rows.strengths[:, None] * rows.to_go() - rest - (log_p + tilt).logsumexp(-1)
    return log_u.nan_to_num(nan=0.0).exp().clamp(max=HEAVIEST)


class Distribution(Objective):
    """The objective over rollouts.

    Args:
        support: lowest and highest possible reward.
        bins: number of bins, spaced evenly over the support, ends included.
        decay: λ; 1 is the cross-entropy to the reward, lower values are its TD form.
    """

    title: ClassVar[str] = "return distribution"
    head: ClassVar[Head] = "distribution"
    is_value: ClassVar[bool] = True
    to_go: ClassVar[bool] = True
    reads_strength: ClassVar[bool] = True

    def __init__(
        self, support: Sequence[float] = (-1.0, 1.0), bins: int = 51, decay: float = 1.0
    ) -> None:
        if len(support) != 2 or not support[0] < support[1]:
            raise ValueError(f"support must be the lowest and the highest reward, not {support}")
        if bins < 2:
            raise ValueError(f"bins must be at least 2, not {bins}")
        self.support, self.bins, self.decay = (support[0], support[1]), bins, check_decay(decay)
        self.name = self.title + (f", λ={decay:g}" if decay < 1 else "")

    def collate(self, items: Sequence[Any], pad_id: int) -> Rows:
        """Padded rows.

        Raises:
            ValueError: a return is outside the support, or rewards of steps meet λ < 1.
        """
        rows = super().collate(items, pad_id)
        if self.decay < 1 and rows.step_rewards.any():
            raise ValueError(
                "rewards of steps need the whole return of each answer: train a distribution with "
                "decay 1 (objective distribution), or td-lambda, which mixes later values in."
            )
        low, high = self.support
        returns = rows.to_go()[rows.mask()]
        # Sums in float32 may leave a support that was taken from the data by their last digits.
        slack = 1e-5 * (high - low) if rows.step_rewards.any() else 0.0
        outside = returns[~((returns >= low - slack) & (returns <= high + slack))]
        if len(outside):
            raise ValueError(
                f"the reward {outside[0]:g} is outside the support of the return distribution, "
                f"{low:g} to {high:g}; set support to the lowest and highest reward of the data."
            )
        return rows

    def loss(self, outputs: Tensor, rows: Rows, log_pi0: Tensor | None = None) -> Tensor:
        """Mean cross-entropy of every prefix's histogram, in nats; see Objective.loss."""
        returns = torch.linspace(*self.support, self.bins, device=outputs.device)
        tilt = rows.strengths[:, None, None] * returns  # [rows, 1, bins]
        untilted = self.histograms(outputs, rows).float().log_softmax(-1)  # [rows, steps, bins]
        log_p = (untilted + tilt).log_softmax(-1)
        if self.decay == 1:
            targets = two_hot(rows.to_go(), self.support, self.bins)  # [rows, steps, bins]
        else:
            ends = two_hot(rows.labels, self.support, self.bins)  # [rows, bins]
            targets = lambda_returns(log_p.detach().exp(), ends, rows.completions, self.decay)
        losses = -(targets * log_p).sum(-1)
        if self.decay == 1:
            losses = losses * importance(untilted.detach(), tilt, rows)
        return losses[rows.mask()].mean()

    def histograms(self, outputs: Tensor, rows: Rows) -> Tensor:
        """Histogram logits after each token: [rows, length, width] → [rows, steps, bins]."""
        return rows.gather(outputs)

    def info(self) -> dict[str, Any]:
        """The returns of the bins."""
        return super().info() | {"support": self.support}


class QDistribution(Distribution):
    """The same for each next token, from one forward over the prefix before it.

    Its p is p(R | x, y^{1:t−1}, v) for every v, so a step costs one scorer token for any k, and a
    token can be compared with the network's expectation at its position. The minimiser is the same.
    Source, in addition: Bellemare et al., section 3, the distribution Z(s, a).
    """

    title: ClassVar[str] = "Q return distribution"
    head: ClassVar[Head] = "distributions"

    def histograms(self, outputs: Tensor, rows: Rows) -> Tensor:
        """The histograms of the completion's tokens; see Distribution.histograms."""
        return rows.chosen(next_histograms(outputs, outputs.shape[-1] // (self.bins + 1)))

    def info(self) -> dict[str, Any]:
        """The returns of the bins, and that every next token has its own."""
        return super().info() | {"ahead": True}
