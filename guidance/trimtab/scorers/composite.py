"""composite: s = Σ w_i·s_i of other scorers, under one name.

Values are linear in the reward, so heads trained separately can be added (VAS). At strength c, each
part scores at strength c·w_i; only `distribution` parts depend on it.
"""

from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Tensor

from trimtab.config import ScorerSpec
from trimtab.errors import ScorerLoadError
from trimtab.scorers.base import Scorer
from trimtab.scorers.loader import Loader
from trimtab.scoring.backbone import Backbone
from trimtab.scoring.pool import Ids
from trimtab.scoring.text import Prompt, Turns
from trimtab.scoring.turns import CONVERSING
from trimtab_models.checkpoint import ScorerInfo


class CompositeScorer(Scorer):
    """A fixed, signed sum of scorers, whose parts keep their caches, also when used alone."""

    family = "composite"
    composes = True

    def __init__(self, parts: Mapping[str, tuple[Scorer, float]]) -> None:
        super().__init__(
            ScorerInfo(
                objective=" + ".join(f"{w:g}·{name}" for name, (_, w) in parts.items()),
                mean=sum(w * scorer.info.mean for scorer, w in parts.values()),
                to_go=any(scorer.info.to_go for scorer, _ in parts.values()),
            )
        )
        self.parts = dict(parts)
        self.whole = all(scorer.whole for scorer, _ in parts.values())
        self.reads_states = any(scorer.reads_states for scorer, _ in parts.values())
        parts_read = {scorer.reads for scorer, _ in parts.values()}
        kinds = (*CONVERSING, "states", "tokens")
        self.reads = next((kind for kind in kinds if kind in parts_read), "text")

    @classmethod
    def load(cls, spec: ScorerSpec, loader: Loader) -> Self:
        """See Scorer.load; the path has the form NAME:WEIGHT+NAME:WEIGHT."""
        parts: dict[str, tuple[Scorer, float]] = {}
        for part in spec.path.split("+"):
            name, _, weight = part.strip().partition(":")
            if name not in loader.loaded or loader.loaded[name].composes:
                raise ScorerLoadError(f"its part '{name}' is not among the other scorers")
            try:
                parts[name] = (loader.loaded[name], float(weight or 1))
            except ValueError:
                raise ScorerLoadError(f"the weight of its part '{name}' is not a number") from None
        return cls(parts)

    def score(
        self,
        keys: Sequence[int],
        prefixes: Sequence[Ids],
        candidates: Sequence[Ids],
        strengths: Sequence[float],
        prompts: Sequence[Prompt] = (),
        **states: Tensor,
    ) -> Tensor:
        """See Scorer.score; states: for the parts that read them."""
        scores = []
        for scorer, w in self.parts.values():
            read = states if scorer.reads_states else {}
            strengths_w = [c * w for c in strengths]
            scores.append(
                w * scorer.score(keys, prefixes, candidates, strengths_w, prompts, **read)
            )
        return torch.stack(scores).sum(0)

    @property
    def backbones(self) -> Sequence[Backbone]:
        """Of all parts."""
        return [backbone for scorer, _ in self.parts.values() for backbone in scorer.backbones]

    @property
    def keeps_time(self) -> bool:
        """See Scorer.keeps_time."""
        return all(scorer.keeps_time for scorer, _ in self.parts.values())

    def refusal(self, turns: Turns) -> str | None:
        """The reason of the first part that cannot read a conversation; None if all can."""
        refusals = (scorer.refusal(turns) for scorer, _ in self.parts.values())
        return next((reason for reason in refusals if reason is not None), None)

    def forget(self, key: int) -> None:
        """Drop the row from every part."""
        for scorer, _ in self.parts.values():
            scorer.forget(key)

    @property
    def parameters(self) -> int:
        """Parameters of all parts."""
        return sum(scorer.parameters for scorer, _ in self.parts.values())

    @property
    def tokens_forwarded(self) -> int:
        """Tokens that went through the parts, including when they are used alone."""
        return sum(scorer.tokens_forwarded for scorer, _ in self.parts.values())

    @property
    def flops(self) -> int:
        """Of the parts, including when they are used alone."""
        return sum(scorer.flops for scorer, _ in self.parts.values())
