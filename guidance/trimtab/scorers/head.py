"""head: a causal backbone with a scalar head, s(prefix + v) = link(w·h(prefix + v) + b).

Partial-sequence rewards (PARGS), values (VAS), prefix classifiers (FUDGE): all give one number per
prefix, and differ only in their training objective and their link.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from trimtab.errors import ScorerLoadError
from trimtab.scorers.base import NetworkScorer
from trimtab.scoring.backbone import Backbone
from trimtab.scoring.cross import CrossBackbone
from trimtab.scoring.pool import Ids
from trimtab.scoring.text import Prompt
from trimtab_models.checkpoint import ScorerInfo
from trimtab_models.readout import LINKS


class HeadScorer(NetworkScorer):
    """One packed forward over the candidates of all rows."""

    family = "head"

    def __init__(self, info: ScorerInfo, backbone: Backbone | CrossBackbone) -> None:
        """As every network scorer.

        Raises:
            ScorerLoadError: its head has more than one output.
        """
        weight: Any = backbone.head.weight  # [outputs, hidden]
        if len(weight) != 1:
            raise ScorerLoadError(
                f"its head has {len(weight)} outputs, which do not fit a head scorer's one; a "
                "classifier with several labels is served as family=text,label=NAME"
            )
        super().__init__(info, backbone)

    def score(
        self,
        keys: Sequence[int],
        prefixes: Sequence[Ids],
        candidates: Sequence[Ids],
        strengths: Sequence[float],
        prompts: Sequence[Prompt] = (),
    ) -> Tensor:
        """See Scorer.score."""
        hidden = self.backbone.hidden(keys, prefixes, candidates, prompts)  # [Σ candidates, hidden]
        return LINKS[self.info.link](self.backbone.head(hidden)[:, 0].float())
