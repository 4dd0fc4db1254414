"""A scorer family of your own, in one file.

    cd examples
    PYTHONPATH=. trimtab serve demo --scorer shouting=1.0,family=own_family:Shouting

What a family must keep is in `trimtab.Scorer`; `trimtab.check_scorer` tests it.
"""

from collections.abc import Sequence
from typing import Any

import torch

from trimtab import Guidance, Scorer, ScorerLoadError, check_scorer
from trimtab_models.checkpoint import ScorerInfo


class Shouting(Scorer):
    """s(prefix + v) = the path's number for each exclamation mark in the text so far and v."""

    family = "shouting"

    def __init__(self, weight: float, tokenizer: Any) -> None:
        super().__init__(ScorerInfo(objective="none: it counts"))
        self.weight = weight
        self.tokenizer = tokenizer

    @classmethod
    def load(cls, spec: Any, loader: Any) -> "Shouting":
        """From `--scorer NAME=PATH`: the path is a number here; it could be a directory."""
        try:
            weight = float(spec.path)
        except ValueError:
            raise ScorerLoadError(f"its path must be a number, not {spec.path}") from None
        return cls(weight, loader.decoder())

    def score(
        self,
        keys: Sequence[int],
        prefixes: Sequence[Any],
        candidates: Sequence[Any],
        strengths: Sequence[float],
        prompts: Sequence[Any] = (),
    ) -> torch.Tensor:
        """One float32 for each candidate of each row, packed in row order."""
        texts = [
            self.tokenizer.decode([*prefix, v])
            for prefix, group in zip(prefixes, candidates, strict=True)
            for v in group
        ]
        return torch.tensor([self.weight * text.count("!") for text in texts])


if __name__ == "__main__":
    from transformers import AutoTokenizer

    from trimtab_models import demo

    tokenizer = AutoTokenizer.from_pretrained(demo.base())
    check_scorer(Shouting(1.0, tokenizer), vocab_size=len(tokenizer))
    guidance = Guidance({"shouting": {"path": "1.0", "family": "own_family:Shouting"}}, tokenizer)
    print(guidance.score(["Good morning !", "Good morning ."]))
