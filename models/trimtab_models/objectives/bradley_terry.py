"""Bradley-Terry on prefixes of preference pairs: the partial-sequence reward model of PARGS.

    L = − E_i log σ( r(x, y_w^{1:i}) − r(x, y_l^{1:i}) ),   i = 1 .. max(|y_w|, |y_l|)

where the side that has ended keeps its last prefix; nothing is compared after both ends, so runs of
EOS are not trained. Source: Rashid et al., "A Critical Look At Tokenwise Reward-Guided Text
Generation" (PARGS), eq. 4. The full-sequence form compares only i = max(|y_w|, |y_l|): it is the
ordinary reward model, which ARGS uses, and its scores of prefixes are arbitrary (their Theorem 1).
"""

import math
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
    """The objective over pairs, at prefixes of every length, or of some.

    Lengths are drawn with torch's generator each time a pair is seen.

    Args:
        ratio: share of the prefix lengths compared; the whole pair is always compared.
        rows_per_pair: instead of a share, the mean number of lengths compared, drawn without
            replacement from 1 .. max(|y_w|, |y_l|), all alike: at 2 two of each pair, at 1.5 one or
            two with equal chances. The paper (appendix I) trains on 1.5 or 2 times as many partial
            pairs as there are pairs.
    """

    name = "partial Bradley-Terry"
    data: ClassVar[DataKind] = "pairs"

    def __init__(self, ratio: float | None = None, rows_per_pair: float | None = None) -> None:
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
        """Mean −log σ(r_w − r_l) over the compared prefixes, in nats; see Objective.loss."""
        ahead = margins(outputs, rows)  # [pairs, steps]
        longest = torch.maximum(rows.completions[0::2], rows.completions[1::2])  # [pairs]
        return -logsigmoid(ahead)[self.compared(longest)].mean()

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
