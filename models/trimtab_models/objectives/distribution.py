"""Return distribution: a histogram of the rewards that answers from this prefix will get.

    L = − E_t Σ_b h_t(b) · log p_b(x, y^{1:t}),   t = 1 .. T,   p = softmax over bins

with bins evenly over a support [low, high]. The target h_t is the reward as a two-hot histogram
(its share in the two bins around it, so that its mean is the reward), or, for λ < 1, a mixture with
the histograms that the network itself gives to the prefixes that follow, without gradient:

    h_t = (1 − λ) · p(x, y^{1:t+1}) + λ · h_{t+1},   h_T = two-hot(R)

which needs no projection, as no reward comes before the end.

An answer drawn with guidance of strength c, by soft values, is read as one of π0·exp(c·R)/Z, whose
returns are the base's tilted: p(b)·exp(c·R_b), normalised, stands in place of p for such a row. So
what guidance finds, and the base seldom says, refines the very histogram of the base. No guidance
is exact, so where log π/π0 of its tokens is known (and λ = 1) the loss of a prefix is weighted by

    u_t = exp(c·R − Σ_{s>t} log π(y_s)/π0(y_s) − Λ_t),   Λ_t = log Σ_b p_b·exp(c·R_b), no gradient

at most `HEAVIEST`: the importance of the answer's rest to the tilted base. It is 1 where guidance
is exact, and for the base's own answers. Λ_t is but a scale that all rests of a prefix share, so
the minimiser is exact however wrong p may still be.

The minimiser is the distribution of
two-hot rewards under π0, whatever λ: exact for rewards on the bins; in between, means are exact and
(1/c)·log E exp(c·R) is too high by at most |c|·w²/8 for bins w apart. Sources: Bellemare et al.,
"A Distributional Perspective on Reinforcement Learning" (ICML 2017), section 4; Farebrother et al.,
"Stop Regressing" (arXiv 2403.03950), section 3, for two-hot targets.
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
    """u_t of every prefix, [rows, steps]; 1 where log π/π0 is not known.

    log_p: [rows, steps, bins] of the base's returns. tilt: [rows, 1, bins] c·R_b.
    """
    rest = rows.log_ratios.sum(1, keepdim=True) - rows.log_ratios.cumsum(1) + rows.rests[:, None]
    log_u = (rows.strengths * rows.labels)[:, None] - rest - (log_p + tilt).logsumexp(-1)
    return log_u.nan_to_num(nan=0.0).exp().clamp(max=HEAVIEST)


class Distribution(Objective):
    """The objective over rollouts.

    Args:
        support: lowest and highest reward there can be.
        bins: how many returns the histogram knows, evenly over the support, ends included.
        decay: λ; 1 is the cross-entropy to the reward, less is its TD form.
    """

    title: ClassVar[str] = "return distribution"
    head: ClassVar[Head] = "distribution"
    is_value: ClassVar[bool] = True
    reads_strength: ClassVar[bool] = True

    def __init__(
        self, support: Sequence[float] = (-1.0, 1.0), bins: int = 51, decay: float = 1.0
    ) -> None:
        if len(support) != 2 or not support[0] < support[1]:
            raise ValueError(f"support is the lowest and the highest reward, not {support}")
        if bins < 2:
            raise ValueError(f"bins are at least 2, not {bins}")
        self.support, self.bins, self.decay = (support[0], support[1]), bins, check_decay(decay)
        self.name = self.title + (f", λ={decay:g}" if decay < 1 else "")

    def collate(self, items: Sequence[Any], pad_id: int) -> Rows:
        """Padded rows.

        Raises:
            ValueError: a reward lies outside the support.
        """
        rows = super().collate(items, pad_id)
        low, high = self.support
        outside = rows.labels[~((rows.labels >= low) & (rows.labels <= high))]
        if len(outside):
            raise ValueError(
                f"the reward {outside[0]:g} lies outside the support of the return distribution, "
                f"{low:g} to {high:g}; set support to the lowest and highest reward of the data."
            )
        return rows

    def loss(self, outputs: Tensor, rows: Rows, log_pi0: Tensor | None = None) -> Tensor:
        """Mean cross-entropy of every prefix's histogram, in nats; see Objective.loss."""
        returns = torch.linspace(*self.support, self.bins, device=outputs.device)
        tilt = rows.strengths[:, None, None] * returns  # [rows, 1, bins]
        untilted = self.histograms(outputs, rows).float().log_softmax(-1)  # [rows, steps, bins]
        log_p = (untilted + tilt).log_softmax(-1)
        ends = two_hot(rows.labels, self.support, self.bins)  # [rows, bins]
        targets = lambda_returns(log_p.detach().exp(), ends, rows.completions, self.decay)
        losses = -(targets * log_p).sum(-1)
        if self.decay == 1:
            losses = losses * importance(untilted.detach(), tilt, rows)
        return losses[rows.mask()].mean()

    def histograms(self, outputs: Tensor, rows: Rows) -> Tensor:
        """Logits of those after each token: [rows, length, width] → [rows, steps, bins]."""
        return rows.gather(outputs)

    def info(self) -> dict[str, Any]:
        """Which returns the bins stand for."""
        return super().info() | {"support": self.support}


class QDistribution(Distribution):
    """The same, of each next token from one reading of the prefix before it.

    Its p is p(R | x, y^{1:t−1}, v) for every v, so it costs one scorer token a token whatever k is,
    and it can compare a token with what the network expected in its place. The minimiser is the
    same. Source, beside the above: Bellemare et al., section 3, whose Z(s, a) it is.
    """

    title: ClassVar[str] = "Q return distribution"
    head: ClassVar[Head] = "distributions"

    def histograms(self, outputs: Tensor, rows: Rows) -> Tensor:
        """Those of the tokens that came; see Distribution.histograms."""
        return rows.chosen(next_histograms(outputs, outputs.shape[-1] // (self.bins + 1)))

    def info(self) -> dict[str, Any]:
        """Which returns the bins stand for, and that there are some for every token."""
        return super().info() | {"ahead": True}
