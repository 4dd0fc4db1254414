"""Bradley-Terry on prefixes of preference pairs: the partial-sequence reward model of PARGS.

    L = − E_i log σ( r(x, y_w^{1:i}) − r(x, y_l^{1:i}) ),   i = 1 .. max(|y_w|, |y_l|)

where the side that has ended keeps its last prefix; beyond both ends nothing is compared, so no
runs of EOS are taught. Source: Rashid et al., "A Critical Look At Tokenwise Reward-Guided Text
Generation" (PARGS), eq. 4. With `partial=False` only the whole sequences are compared,
i = max(|y_w|, |y_l|): the ordinary reward model, which ARGS guides with, and which may say anything
of a prefix (their Theorem 1).
"""

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from trimtab_models.objectives.base import Kind, Objective
from trimtab_models.rows import Rows


class BradleyTerry(Objective):
    """The objective over pairs.

    Args:
        partial: compare prefixes of every length (PARGS), or whole sequences only (ARGS).
        ratio: share of the prefix lengths compared each time a pair is seen, drawn at random from
            torch's generator; the whole pair always is. The paper finds 1.5 to 2 comparisons a pair
            enough: a ratio of about 1 / (mean length).
    """

    data: ClassVar[Kind] = "pairs"

    def __init__(self, *, partial: bool = True, ratio: float = 1.0) -> None:
        if not 0 < ratio <= 1:
            raise ValueError(f"ratio is the share of prefixes used, in (0, 1], not {ratio}")
        self.partial, self.ratio = partial, ratio
        self.name = "partial Bradley-Terry" if partial else "full-sequence Bradley-Terry"

    def loss(self, outputs: Tensor, rows: Rows, log_pi0: Tensor | None = None) -> Tensor:
        """Mean −log σ(r_w − r_l) over the compared prefixes, in nats; see Objective.loss."""
        scores = rows.gather(outputs[..., 0])  # [2 · pairs, steps]
        margins = scores[0::2] - scores[1::2]  # [pairs, steps]
        longest = torch.maximum(rows.completions[0::2], rows.completions[1::2])  # [pairs]
        if not self.partial:
            return -logsigmoid(margins[:, -1]).mean()
        used = torch.arange(margins.shape[1], device=margins.device)[None] < longest[:, None]
        if self.ratio < 1:
            drawn = torch.rand(used.shape, device=used.device) < self.ratio
            drawn[torch.arange(len(longest)), longest - 1] = True  # the whole pair always counts
            used = used & drawn
        return -logsigmoid(margins)[used].mean()
