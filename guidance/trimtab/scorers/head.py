"""head: a causal backbone with a scalar head, s(prefix + v) = w·h(prefix + v) + b.

Partial-sequence rewards (PARGS), values (VAS), prefix classifiers (FUDGE): all are one number
for each prefix, and differ only in what they were trained for.
"""

from collections.abc import Sequence

from torch import Tensor

from trimtab.backbone import Backbone
from trimtab.cache import Ids
from trimtab.scorers.base import Scorer
from trimtab_models.checkpoint import ScorerInfo


class HeadScorer(Scorer):
    """One packed forward over the candidates of all rows."""

    family = "head"

    def __init__(self, info: ScorerInfo, backbone: Backbone) -> None:
        super().__init__(info)
        self.backbone = backbone

    def score(
        self, keys: Sequence[int], prefixes: Sequence[Ids], candidates: Sequence[Ids]
    ) -> Tensor:
        """See Scorer.score."""
        hidden = self.backbone.hidden(keys, prefixes, candidates)  # [Σ candidates, hidden]
        scores: Tensor = self.backbone.head(hidden)[:, 0]
        return scores.float()

    def forget(self, key: int) -> None:
        """Drop the row's prefix."""
        self.backbone.forget(key)

    @property
    def parameters(self) -> int:
        """Parameters of backbone and head."""
        return self.backbone.model.num_parameters()

    @property
    def tokens_forwarded(self) -> int:
        """Prefix tokens and candidates that went through the backbone."""
        return self.backbone.tokens_forwarded
