"""head: a causal backbone with a scalar head, s(prefix + v) = w·h(prefix + v) + b.

Partial-sequence rewards (PARGS), values (VAS), prefix classifiers (FUDGE): all are one number
for each prefix, and differ only in what they were trained for.
"""

from collections.abc import Sequence

from torch import Tensor

from trimtab.cache import Ids
from trimtab.scorers.base import NetworkScorer


class HeadScorer(NetworkScorer):
    """One packed forward over the candidates of all rows."""

    family = "head"

    def score(
        self, keys: Sequence[int], prefixes: Sequence[Ids], candidates: Sequence[Ids]
    ) -> Tensor:
        """See Scorer.score."""
        hidden = self.backbone.hidden(keys, prefixes, candidates)  # [Σ candidates, hidden]
        scores: Tensor = self.backbone.head(hidden)[:, 0]
        return scores.float()
