"""vocabulary: Q(prefix, ·) for every next token from one forward of the prefix alone.

It serves CD-Q, FaRMA, dueling and ILQL heads: one query per row and step, for any k.
"""

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from trimtab.config import ScorerSpec
from trimtab.scorers.base import NetworkScorer, gather_candidates, places
from trimtab.scorers.loader import Loader
from trimtab.scoring.pool import Ids
from trimtab.scoring.text import Prompt
from trimtab_models.transfers import upload


class VocabularyScorer(NetworkScorer):
    """s(prefix + v) = Q(prefix)[v], the output of a vocabulary head."""

    family = "vocabulary"
    network = "vocabulary"
    whole = True

    @classmethod
    def load(cls, spec: ScorerSpec, loader: Loader) -> Self:
        """See Scorer.load."""
        return cls(*loader.native(spec.path, cls.network))

    def table(self, keys: Sequence[int], prefixes: Sequence[Ids]) -> Tensor:
        """The head's output for every next token, [rows, vocab] float32."""
        logits: Tensor = self.backbone.head(self.backbone.hidden(keys, prefixes, None))
        return logits.float()

    @torch.inference_mode()
    def score(
        self,
        keys: Sequence[int],
        prefixes: Sequence[Ids],
        candidates: Sequence[Ids],
        strengths: Sequence[float],
        prompts: Sequence[Prompt] = (),
    ) -> Tensor:
        """See Scorer.score.

        Of the head only the candidates' rows are read, unless they are as many as the vocabulary.
        """
        head: Any = self.backbone.head  # weight: [vocab, hidden]
        if sum(map(len, candidates)) >= len(head.weight):
            return gather_candidates(self.table(keys, prefixes), candidates)
        hidden = self.backbone.hidden(keys, prefixes, None).float()  # [rows, hidden]
        row, token = upload(places(candidates, len(head.weight)), hidden.device)
        scores: Tensor = (hidden[row] * head.weight[token].float()).sum(-1)
        return scores if head.bias is None else scores + head.bias[token].float()
