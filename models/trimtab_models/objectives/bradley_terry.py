"""Bradley-Terry on prefixes of preference pairs: the partial-sequence reward model of PARGS.

    L = − E_i log σ( r(x, y_w^{1:i}) − r(x, y_l^{1:i}) ),   i = 1 .. max(|y_w|, |y_l|)

where the side that has ended keeps its last prefix. Source: Rashid et al., "Towards Cost-Effective
Reward Guided Text Generation" (PARGS), eq. 4. With `partial=False` only the whole sequences are
compared, i = max(|y_w|, |y_l|): the ordinary reward model, which ARGS guides with.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from trimtab_models.data import Pair, Rollout, Rows, pad


class BradleyTerry:
    """The objective over pairs; the first half of a batch's rows is preferred to the second.

    Args:
        partial: compare prefixes of every length (PARGS), or whole sequences only (ARGS).
        ratio: share of the prefix lengths compared each time a pair is seen, drawn at random.
    """

    def __init__(self, *, partial: bool = True, ratio: float = 1.0) -> None:
        if not 0 < ratio <= 1:
            raise ValueError(f"ratio is the share of prefixes used, in (0, 1], not {ratio}")
        self.partial, self.ratio = partial, ratio

    @property
    def name(self) -> str:
        """As stored with the checkpoint."""
        return "partial Bradley-Terry" if self.partial else "full-sequence Bradley-Terry"

    def collate(self, pairs: Sequence[Pair], pad_id: int) -> Rows:
        """Rows [2 · pairs, length]: all chosen, then all rejected."""
        chosen = [Rollout(pair.prompt, pair.chosen, 0.0) for pair in pairs]
        rejected = [Rollout(pair.prompt, pair.rejected, 0.0) for pair in pairs]
        return pad([*chosen, *rejected], pad_id)

    def loss(self, values: Tensor, rows: Rows) -> Tensor:
        """Mean −log σ(r_w − r_l) over the compared prefixes, in nats.

        Args:
            values: [2 · pairs, length] the network's score at every position.
            rows: the batch from `collate`.
        """
        better, worse = rows.gather(values).chunk(2)  # [pairs, steps]
        longest = torch.maximum(*rows.completions.chunk(2))  # [pairs]
        if not self.partial:
            return -logsigmoid(better[:, -1] - worse[:, -1]).mean()
        used = torch.arange(better.shape[1], device=values.device)[None] < longest[:, None]
        if self.ratio < 1:
            drawn = torch.rand(used.shape, device=values.device) < self.ratio
            drawn[torch.arange(len(longest)), longest - 1] = True  # the whole pair always counts
            used = used & drawn
        return -logsigmoid(better - worse)[used].mean()
