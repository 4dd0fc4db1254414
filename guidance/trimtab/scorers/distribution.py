"""distribution: the soft value of a histogram over returns, at the request's own strength.

    s_c(prefix + v) = (1/c)·log Σ_b p_b·exp(c·R_b),   s_0 = Σ_b p_b·R_b

with p = softmax of the head's outputs and R the returns of its bins. The head reads the state after
v, or the state before v with outputs for every v (then a row of the batch costs one scorer token,
for any k). Sampling from π0·exp(c·s_c) is the optimum of E[R] − KL(π ‖ π0)/c for every c, so one
head serves every β without new training (Q♯, arXiv 2502.20548); for small c, s_c approaches the
mean.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trimtab.errors import ScorerLoadError
from trimtab.scorers.base import NetworkScorer, gather_candidates, soft_values
from trimtab.scoring.backbone import Backbone
from trimtab.scoring.cross import CrossBackbone
from trimtab.scoring.pool import Ids
from trimtab.scoring.text import Prompt
from trimtab_models.checkpoint import ScorerInfo
from trimtab_models.networks import next_histograms


class DistributionScorer(NetworkScorer):
    """One packed forward over the candidates of all rows; each row at its own strength."""

    family = "distribution"
    network = "distribution"
    distributional = True

    def __init__(self, info: ScorerInfo, backbone: Backbone | CrossBackbone) -> None:
        """As every network scorer.

        Raises:
            ScorerLoadError: the checkpoint does not say which returns its bins stand for, or has
                fewer than two of them.
        """
        if info.support is None:
            raise ScorerLoadError(
                "it does not say which returns its bins stand for; expected a distribution "
                'checkpoint whose config.json has "support": [lowest, highest] under "trimtab"'
            )
        super().__init__(info, backbone)
        weight: Any = backbone.head.weight  # [bins, hidden], or [vocab · (bins + 1), hidden]
        self.vocab = backbone.model.get_input_embeddings().num_embeddings
        bins = len(weight) // self.vocab - 1 if info.ahead else len(weight)
        if bins < 2 or (info.ahead and len(weight) % self.vocab):
            raise ScorerLoadError(
                f"its head has {len(weight)} outputs, which do not fit a histogram of returns"
            )
        self.whole = info.ahead
        self.returns = torch.linspace(*info.support, bins)
        """The return of each bin, [bins] float32 on the host."""

    def score(
        self,
        keys: Sequence[int],
        prefixes: Sequence[Ids],
        candidates: Sequence[Ids],
        strengths: Sequence[float],
        prompts: Sequence[Prompt] = (),
    ) -> Tensor:
        """See Scorer.score."""
        logits = self.histograms(keys, prefixes, candidates, prompts)
        return soft_values(logits, self.returns, candidates, strengths)

    def histograms(
        self,
        keys: Sequence[int],
        prefixes: Sequence[Ids],
        candidates: Sequence[Ids],
        prompts: Sequence[Prompt] = (),
    ) -> Tensor:
        """Log-probabilities of the bins, up to a constant: [Σ candidates, bins]; see Scorer.score.

        `score` computes its soft values from them; for callers that do not know strengths yet.
        """
        forwarded = None if self.info.ahead else candidates
        hidden = self.backbone.hidden(keys, prefixes, forwarded, prompts)
        # [Σ candidates or rows, hidden]
        logits: Tensor = self.backbone.head(hidden)
        if self.info.ahead:
            return gather_candidates(next_histograms(logits, self.vocab), candidates)
        return logits
