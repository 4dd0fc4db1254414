"""vocabulary: Q(prefix, ·) for every next token from one forward of the prefix alone.

CD-Q, FaRMA, dueling and ILQL heads are served so: one query a row and step, whatever k is.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from trimtab.cache import Ids
from trimtab.reader import Prompt
from trimtab.scorers.base import NetworkScorer


def gather_candidates(table: Tensor, candidates: Sequence[Ids]) -> Tensor:
    """Entries of each row's candidates: [rows, vocab, …] → [Σ candidates, …].

    The last entry stands for ids beyond, as in Backbone.
    """
    rows = np.repeat(np.arange(len(candidates)), [len(c) for c in candidates])
    at = np.stack((rows, np.minimum(np.concatenate(candidates), table.shape[1] - 1)))
    row, token = torch.from_numpy(at).to(table.device)
    return table[row, token]


class VocabularyScorer(NetworkScorer):
    """s(prefix + v) = Q(prefix)[v], the output of a vocabulary head."""

    family = "vocabulary"

    def table(self, keys: Sequence[int], prefixes: Sequence[Ids]) -> Tensor:
        """The head's output for every next token, [rows, vocab] float32."""
        logits: Tensor = self.backbone.head(self.backbone.hidden(keys, prefixes, None))
        return logits.float()

    def score(
        self,
        keys: Sequence[int],
        prefixes: Sequence[Ids],
        candidates: Sequence[Ids],
        strengths: Sequence[float],
        prompts: Sequence[Prompt] = (),
    ) -> Tensor:
        """See Scorer.score."""
        return gather_candidates(self.table(keys, prefixes), candidates)
