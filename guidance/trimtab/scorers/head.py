"""head: a causal backbone with a scalar head, s(prefix + v) = link(w·h(prefix + v) + b).

Partial-sequence rewards (PARGS), values (VAS), prefix classifiers (FUDGE): all give one number per
prefix, and differ only in their training objective and their link.

An ensemble has several heads on one backbone, trained on resamples of the data. Its score is

    s(prefix + v) = mean_i s_i(prefix + v) − λ·spread_i s_i(prefix + v)

with the standard deviation as the spread, and λ ≥ 0 of the request (`caution`): a cautious request
is led less to candidates on which the heads differ.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trimtab.errors import ScorerLoadError
from trimtab.scorers.base import NetworkScorer
from trimtab.scoring.backbone import Backbone
from trimtab.scoring.cross import CrossBackbone
from trimtab.scoring.pool import Ids
from trimtab.scoring.text import Prompt
from trimtab_models.checkpoint import ScorerInfo
from trimtab_models.readout import LINKS, cautious
from trimtab_models.transfers import upload


class HeadScorer(NetworkScorer):
    """One packed forward over the candidates of all rows."""

    family = "head"

    def __init__(self, info: ScorerInfo, backbone: Backbone | CrossBackbone) -> None:
        """As every network scorer.

        Raises:
            ScorerLoadError: its head has another number of outputs than it says.
        """
        weight: Any = backbone.head.weight  # [outputs, hidden]
        if len(weight) != info.heads:
            fits = "one" if info.heads == 1 else f"{info.heads} heads"
            raise ScorerLoadError(
                f"its head has {len(weight)} outputs, which do not fit a head scorer's {fits}; a "
                "classifier with several labels is served as family=text,label=NAME"
            )
        super().__init__(info, backbone)
        self.ensemble = info.heads > 1

    def score(
        self,
        keys: Sequence[int],
        prefixes: Sequence[Ids],
        candidates: Sequence[Ids],
        strengths: Sequence[float],
        prompts: Sequence[Prompt] = (),
        *,
        cautions: Sequence[float] = (),
    ) -> Tensor:
        """See Scorer.score; cautions: λ of each row, 0 if absent."""
        hidden = self.backbone.hidden(keys, prefixes, candidates, prompts)  # [Σ candidates, hidden]
        values = LINKS[self.info.link](self.backbone.head(hidden).float())  # [Σ candidates, heads]
        if not self.ensemble:
            return values[:, 0]
        if not any(cautions):
            return values.mean(-1)
        counts = torch.tensor([len(group) for group in candidates])
        each = torch.tensor(cautions, dtype=torch.float32).repeat_interleave(counts)
        return cautious(values, upload(each, values.device))
