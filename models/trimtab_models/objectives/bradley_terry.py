"""Bradley-Terry on prefixes of preference pairs: the partial-sequence reward model of PARGS.

    L = − E_i log σ( r(x, y_w^{1:i}) − r(x, y_l^{1:i}) ),   i = 1 .. max(|y_w|, |y_l|)

where the side that has ended keeps its last prefix; nothing is compared after both ends, so runs of
EOS are not trained. Source: Rashid et al., "A Critical Look At Tokenwise Reward-Guided Text
Generation" (PARGS), eq. 4. The full-sequence form compares only i = max(|y_w|, |y_l|): it is the
ordinary reward model, which ARGS uses, and its scores of prefixes are arbitrary (their Theorem 1).

A pair with measured odds (see `rows.Pair`) is compared at its measured points (i, j) alone, with
the measured probability P in place of the label that a prefix inherits. Ties are P = 0.5.

    L = − E_(i, j) [ P·log σ(Δ) + (1 − P)·log σ(−Δ) ],   Δ = r(x, y_w^{1:i}) − r(x, y_l^{1:j})

Its minimum is σ(Δ) = P, their Lemma 2 (eq. 5) without its assumption.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from trimtab_models.objectives.base import DataKind, Objective
from trimtab_models.rows import Rows


class FullBradleyTerry(Objective):
    """The objective over pairs of whole sequences.

    Args:
        margin: m of `cross_entropy`; the pairs need rewards.
        label_smoothing: ε of `cross_entropy`.
    """

    name = "full-sequence Bradley-Terry"
    data: ClassVar[DataKind] = "pairs"

    def __init__(self, *, margin: float = 0.0, label_smoothing: float = 0.0) -> None:
        if not margin >= 0:
            raise ValueError(f"margin must be 0 or above, not {margin}")
        if not 0 <= label_smoothing < 0.5:
            raise ValueError(
                f"label_smoothing is a share of wrong labels; expected [0, 0.5), not "
                f"{label_smoothing}"
            )
        self.margin, self.label_smoothing = margin, label_smoothing

    def collate(self, items: Sequence[Any], pad_id: int) -> Rows:
        """As `Objective.collate`; with a margin, a pair without rewards raises ValueError."""
        if self.margin and not all(item.rewards for item in items):
            raise ValueError(
                "margin needs the rewards of both sides: 'score_chosen' and 'score_rejected' in "
                "every row; add them, or leave out options.margin."
            )
        return super().collate(items, pad_id)

    def loss(self, outputs: Tensor, rows: Rows, log_pi0: Tensor | None = None) -> Tensor:
        """Mean −log σ(r_w − r_l), in nats; see Objective.loss."""
        kept, wins = _measured(rows)
        ended = kept == rows.completions[:, None]  # [2 · pairs, points]
        whole = ended[0::2] & ended[1::2]
        # Without a measurement of the whole answers, the chosen one is better.
        label = torch.where(whole, wins, torch.nan).nanmean(1).nan_to_num(1.0)  # [pairs]
        return self.cross_entropy(margins(outputs, rows)[:, -1], label, rows.labels).mean()

    def cross_entropy(self, ahead: Tensor, wins: Tensor, rewards: Tensor) -> Tensor:
        """−P'·log σ(Δ') − (1 − P')·log σ(−Δ') of each comparison, in nats.

            P' = (1 − ε)·P + ε·(1 − P)              ε = label_smoothing: the share of wrong labels
            Δ' = Δ − m·|R_w − R_l|·(2·P − 1)        m = margin

        The margin is that of Llama 2's reward models (Touvron et al. 2023, eq. 2) where P = 1, with
        the difference of the whole answers' rewards in place of a rating; at P = 0.5 there is none,
        and at P = 0 it is the other side's. The smoothing is that of conservative DPO (Mitchell).

        Args:
            ahead: [pairs, ...] Δ, the chosen side's score minus the rejected side's.
            wins: [pairs, ...] P.
            rewards: [2 · pairs] rewards of the whole answers; read only with a margin.
        """
        if self.margin:
            lead = self.margin * (rewards[0::2] - rewards[1::2]).abs()
            ahead = ahead - lead.view(-1, *[1] * (ahead.dim() - 1)) * (2 * wins - 1)
        target = wins + self.label_smoothing * (1 - 2 * wins)
        return -target * logsigmoid(ahead) - (1 - target) * logsigmoid(-ahead)


class BradleyTerry(FullBradleyTerry):
    """The objective over pairs, at prefixes of every length, or of some.

    Lengths are drawn with torch's generator each time a pair is seen. All measured points are
    compared.

    Args:
        ratio: share of the prefix lengths compared; the whole pair is always compared.
        rows_per_pair: instead of a share, the mean number of lengths compared, drawn without
            replacement from 1 .. max(|y_w|, |y_l|), all alike: at 2 two of each pair, at 1.5 one or
            two with equal chances. The paper (appendix I) trains on 1.5 or 2 times as many partial
            pairs as there are pairs.
        margin, label_smoothing: see `cross_entropy`.
    """

    name = "partial Bradley-Terry"

    def __init__(
        self,
        ratio: float | None = None,
        rows_per_pair: float | None = None,
        *,
        margin: float = 0.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(margin=margin, label_smoothing=label_smoothing)
        if ratio is not None and rows_per_pair is not None:
            raise ValueError("ratio and rows_per_pair both choose the prefixes; set one of the two")
        if ratio is not None and not 0 < ratio <= 1:
            raise ValueError(f"ratio is a share of prefixes; expected (0, 1], not {ratio}")
        if rows_per_pair is not None and not 1 <= rows_per_pair < math.inf:
            raise ValueError(
                f"rows_per_pair is a number of prefixes and must be at least 1, not {rows_per_pair}"
            )
        self.ratio, self.rows_per_pair = ratio, rows_per_pair

    def loss(self, outputs: Tensor, rows: Rows, log_pi0: Tensor | None = None) -> Tensor:
        """Mean cross-entropy over the compared prefixes, in nats; see Objective.loss."""
        ahead = margins(outputs, rows)  # [pairs, steps]
        longest = torch.maximum(rows.completions[0::2], rows.completions[1::2])  # [pairs]
        kept, wins = _measured(rows)
        is_point = ~wins.isnan()  # [pairs, points]
        used = self.compared(longest) & ~is_point.any(1, keepdim=True)
        scores = rows.gather(outputs[..., 0]).gather(1, (kept - 1).clamp(min=0))
        every = self.cross_entropy(
            torch.cat((ahead, scores[0::2] - scores[1::2]), 1),
            torch.cat((torch.ones_like(ahead), wins.nan_to_num(0.5)), 1),
            rows.labels,
        )
        return every[torch.cat((used, is_point), 1)].mean()

    def compared(self, longest: Tensor) -> Tensor:
        """Which prefix lengths are compared: [pairs] maximum lengths → [pairs, steps] bool."""
        steps = torch.arange(int(longest.max()), device=longest.device)
        used = steps[None] < longest[:, None]
        if self.rows_per_pair is not None:
            whole, rest = divmod(self.rows_per_pair, 1.0)
            wanted = whole + (torch.rand(longest.shape, device=longest.device) < rest).float()
            # The ranks of random numbers are a random order of the lengths.
            order = torch.rand(used.shape, device=used.device).masked_fill(~used, 2.0)
            return used & (order.argsort(1).argsort(1) < wanted[:, None])
        if self.ratio is not None and self.ratio < 1:
            sampled = torch.rand(used.shape, device=used.device) < self.ratio
            sampled[torch.arange(len(longest)), longest - 1] = True  # always the whole pair
            used = used & sampled
        return used


def margins(outputs: Tensor, rows: Rows) -> Tensor:
    """The chosen side's score minus the rejected side's after each token: [pairs, steps]."""
    scores = rows.gather(outputs[..., 0])  # [2 · pairs, steps]
    return scores[0::2] - scores[1::2]


def _measured(rows: Rows) -> tuple[Tensor, Tensor]:
    """The measured points: tokens of each side, [2 · pairs, points] int64, 0 where there is none,
    and the probability that the chosen side wins, [pairs, points], NaN where there is none."""
    return rows.odds[..., 0].nan_to_num(0.0).long(), rows.odds[0::2, :, 1]
