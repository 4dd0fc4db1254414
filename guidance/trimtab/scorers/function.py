"""function: a Python function of the token ids, or of the text, of prefix + candidate."""

from collections.abc import Callable, Sequence
from typing import Self

import numpy as np
import torch
from torch import Tensor

from trimtab.config import ScorerSpec
from trimtab.errors import ScorerLoadError
from trimtab.scorers.base import Scorer
from trimtab.scorers.loader import Loader, imported
from trimtab.scoring.pool import Ids
from trimtab.scoring.text import Detokenizer, Prompt
from trimtab_models.checkpoint import ScorerInfo


class FunctionScorer(Scorer):
    """s(prefix + v) = f(ids of prefix + v), or f(text of prefix + v) with a tokenizer.

    f takes one list of token ids (or one string) and returns a float: length, a regular
    expression, a verifier. It is called once for each candidate, so it should be fast.
    """

    family = "function"

    def __init__(
        self,
        function: Callable[..., float],
        tokenizer: Detokenizer | None = None,
        info: ScorerInfo | None = None,
    ) -> None:
        super().__init__(info or ScorerInfo(objective="function"))
        self.function = function
        self.tokenizer = tokenizer
        self.reads = "tokens" if tokenizer is None else "text"

    @classmethod
    def load(cls, spec: ScorerSpec, loader: Loader) -> Self:
        """See Scorer.load."""
        if ":" not in spec.path:
            raise ScorerLoadError("a function scorer's path must be module:function")
        if spec.reads not in (None, "tokens", "text"):
            raise ScorerLoadError(f"reads must be one of tokens, text, not {spec.reads}")
        function = imported(spec.path)
        if not callable(function):
            raise ScorerLoadError(f"{spec.path} is not a function.")
        return cls(function, loader.decoder() if spec.reads == "text" else None)

    def score(
        self,
        keys: Sequence[int],
        prefixes: Sequence[Ids],
        candidates: Sequence[Ids],
        strengths: Sequence[float],
        prompts: Sequence[Prompt] = (),
    ) -> Tensor:
        """See Scorer.score."""
        sequences = [
            np.append(prefix, candidate).tolist()
            for prefix, group in zip(prefixes, candidates, strict=True)
            for candidate in group
        ]
        if self.tokenizer is not None:
            # Special tokens stay: a function may need to see where the answer begins or ends.
            texts = [self.tokenizer.decode(ids) for ids in sequences]
            return torch.tensor([float(self.function(text)) for text in texts])
        return torch.tensor([float(self.function(ids)) for ids in sequences])
