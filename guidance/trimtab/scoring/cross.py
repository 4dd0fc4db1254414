"""A causal network with its own tokenizer, behind a prefix pool.

Candidates are scored as text. Each text is retokenised from its last seam (retokenise.py). The
common tokens of all candidates of a row are the trunk, to which the prefix pool is rolled back; the
rest of each candidate is a branch. One packed forward reads the new tokens of all trunks and all
branches (Backbone.branches).

    text(prefix + v) = text(prefix) + text(v)   does not give   T(prefix + v) = T(prefix) + T(v)

so a branch may be longer than a candidate, and begin before it.
"""

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn
from transformers import PreTrainedModel

from trimtab.errors import TrimtabError
from trimtab.scoring.backbone import Backbone
from trimtab.scoring.pool import Ids, common_prefix, keep
from trimtab.scoring.retokenise import KEPT, Retokeniser
from trimtab.scoring.text import Prompt, Reader
from trimtab_models.texts import kept_from


class CrossBackbone:
    """A Backbone for a network whose tokenizer is not the base's.

    A text longer than `window` tokens loses its first ones, a quarter of the window at a time: so
    its start changes rarely, and the cache stays valid.

    Args:
        backbone: of the network.
        reader: decodes the base's tokens.
        tokens: tokenises for the network.
        window: maximum tokens that the network reads.
    """

    def __init__(
        self, backbone: Backbone, reader: Reader, tokens: Retokeniser, window: int
    ) -> None:
        self.backbone, self.reader, self.tokens, self.window = backbone, reader, tokens, window
        self.reads = "text" if reader.render is None else "chat"
        self._shortened: OrderedDict[int, int] = OrderedDict()

    @property
    def model(self) -> PreTrainedModel:
        """The network with its head."""
        return self.backbone.model

    @property
    def head(self) -> nn.Module:
        """The head, from hidden states to outputs."""
        return self.backbone.head

    @property
    def tokens_forwarded(self) -> int:
        """Tokens of the network's tokenizer that went through it."""
        return self.backbone.tokens_forwarded

    def hidden(
        self,
        keys: Sequence[int],
        prefixes: Sequence[Ids],
        candidates: Sequence[Ids] | None,
        prompts: Sequence[Prompt] = (),
    ) -> Tensor:
        """Last hidden states of every row's candidates, [Σ candidates, hidden], in row order.

        Raises:
            TrimtabError: `candidates` is None: the network has no outputs for the base's
                vocabulary.
        """
        if candidates is None:
            raise TrimtabError("a network with another tokenizer scores candidates only")
        trunks, branches = [], []
        rows = self.reader.read(keys, prefixes, candidates, prompts)
        for key, row in zip(keys, rows, strict=True):
            whole = self.tokens.sequences(key, [row.prompt + answer for answer in row.answers])
            lost = max(0, max(map(len, whole)) - self.window)
            keep(self._shortened, key, lost, KEPT)
            sequences = [self._fitting(ids) for ids in whole]
            # Each branch keeps at least one token, whose hidden state is needed.
            shared = min(common_prefix(sequences[0], ids) for ids in sequences)
            shared = min(shared, min(map(len, sequences)) - 1)
            trunks.append(sequences[0][:shared])
            branches.append([ids[shared:] for ids in sequences])
        return self.backbone.branches(keys, trunks, branches)

    def forget(self, key: int) -> None:
        """Drop what is kept for a row."""
        self.backbone.forget(key)
        self.reader.forget(key)
        self.tokens.forget(key)
        self._shortened.pop(key, None)

    def reset(self) -> None:
        """Drop every trunk; cached texts are never partial."""
        self.backbone.reset()

    def shortened(self, key: int) -> int:
        """See Scorer.shortened."""
        return self._shortened.get(key, 0)

    def _fitting(self, ids: Ids) -> Ids:
        start = len(self.tokens.start)
        return np.concatenate((ids[:start], ids[kept_from(len(ids), start, self.window) :]))
