"""Bradley-Terry on prefixes of preference pairs: the partial-sequence reward model of PARGS.

    L = − E_i log σ( r(x, y_w^{1:i}) − r(x, y_l^{1:i}) ),   i = 1 .. max(|y_w|, |y_l|)

where the side that has ended keeps its last prefix; beyond both ends nothing is compared, so no
runs of EOS are taught. Source: Rashid et al., "A Critical Look At Tokenwise Reward-Guided Text
Generation" (PARGS), eq. 4. The full-sequence form compares i = max(|y_w|, |y_l|) alone: it is the
ordinary reward model, which ARGS guides with, and which may say anything of a prefix (their
Theorem 1).
"""

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from trimtab_models.objectives.base import Kind, Objective
from trimtab_models.rows import Rows


class FullBradleyTerry(Objective):
    """The objective over pairs of whole sequences."""

    name = "full-sequence Bradley-Terry"
    data: ClassVar[Kind] = "pairs"

    def loss(self, outputs: Tensor, rows: Rows, log_pi0: Tensor | None = None) -> Tensor:
        """Mean −log σ(r_w − r_l), in nats; see Objective.loss."""
        return -logsigmoid(margins(outputs, rows)[:, -1]).mean()


class BradleyTerry(Objective):
    """The objective over pairs, at prefixes of every length.

    Args:
        ratio: share of the prefix lengths compared each time a pair is seen, drawn at random from
            torch's generator; the whole pair always is. The paper finds 1.5 to 2 comparisons a pair
            enough: a ratio of about 1 / (mean length).
    """

    name = "partial Bradley-Terry"
    data: ClassVar[Kind] = "pairs"

    def __init__(self, ratio: float = 1.0) -> None:
        if not 0 < ratio <= 1:
            raise ValueError(f"ratio is the share of prefixes used, in (0, 1], not {ratio}")
        self.ratio = ratio

    def loss(self, outputs: Tensor, rows: Rows, log_pi0: Tensor | None = None) -> Tensor:
        """Mean −log σ(r_w − r_l) over the compared prefixes, in nats; see Objective.loss."""
        ahead = margins(outputs, rows)  # [pairs, steps]
        longest = torch.maximum(rows.completions[0::2], rows.completions[1::2])  # [pairs]
        used = torch.arange(ahead.shape[1], device=ahead.device)[None] < longest[:, None]
        if self.ratio < 1:
            drawn = torch.rand(used.shape, device=used.device) < self.ratio
            drawn[torch.arange(len(longest)), longest - 1] = True  # the whole pair always counts
            used = used & drawn
        return -logsigmoid(ahead)[used].mean()


def margins(outputs: Tensor, rows: Rows) -> Tensor:
    """How much better the chosen side scores after each number of tokens: [pairs, steps]."""
    scores = rows.gather(outputs[..., 0])  # [2 · pairs, steps]
    return scores[0::2] - scores[1::2]
