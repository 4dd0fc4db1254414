"""Bradley-Terry on prefixes of preference pairs: the partial-sequence reward model of PARGS.

    L = − E_i log σ( r(x, y_w^{1:i}) − r(x, y_l^{1:i}) ),   i = 1 .. max(|y_w|, |y_l|)

where the side that has ended keeps its last prefix; nothing is compared after both ends, so runs of
EOS are not trained. Source: Rashid et al., "A Critical Look At Tokenwise Reward-Guided Text
Generation" (PARGS), eq. 4. The full-sequence form compares only i = max(|y_w|, |y_l|): it is the
ordinary reward model, which ARGS uses, and its scores of prefixes are arbitrary (their Theorem 1).
"""

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from trimtab_models.objectives.base import DataKind, Objective
from trimtab_models.rows import Rows


class FullBradleyTerry(Objective):
    """The objective over pairs of whole sequences."""

    name = "full-sequence Bradley-Terry"
    data: ClassVar[DataKind] = "pairs"

    def loss(self, outputs: Tensor, rows: Rows, log_pi0: Tensor | None = None) -> Tensor:
        """Mean −log σ(r_w − r_l), in nats; see Objective.loss."""
        return -logsigmoid(margins(outputs, rows)[:, -1]).mean()


class BradleyTerry(Objective):
    """The objective over pairs, at prefixes of every length.

    Args:
        ratio: share of the prefix lengths compared each time a pair is seen, sampled with torch's
            generator; the whole pair is always compared. In the paper 1.5 to 2 comparisons for each
            pair are enough: a ratio of about 1 / (mean length).
    """

    name = "partial Bradley-Terry"
    data: ClassVar[DataKind] = "pairs"

    def __init__(self, ratio: float = 1.0) -> None:
        if not 0 < ratio <= 1:
            raise ValueError(f"ratio is a share of prefixes; expected (0, 1], not {ratio}")
        self.ratio = ratio

    def loss(self, outputs: Tensor, rows: Rows, log_pi0: Tensor | None = None) -> Tensor:
        """Mean −log σ(r_w − r_l) over the compared prefixes, in nats; see Objective.loss."""
        ahead = margins(outputs, rows)  # [pairs, steps]
        longest = torch.maximum(rows.completions[0::2], rows.completions[1::2])  # [pairs]
        used = torch.arange(ahead.shape[1], device=ahead.device)[None] < longest[:, None]
        if self.ratio < 1:
            sampled = torch.rand(used.shape, device=used.device) < self.ratio
            sampled[torch.arange(len(longest)), longest - 1] = True  # always the whole pair
            used = used & sampled
        return -logsigmoid(ahead)[used].mean()


def margins(outputs: Tensor, rows: Rows) -> Tensor:
    """The chosen side's score minus the rejected side's after each token: [pairs, steps]."""
    scores = rows.gather(outputs[..., 0])  # [2 · pairs, steps]
    return scores[0::2] - scores[1::2]
