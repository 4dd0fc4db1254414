"""The one interface of all scorer families.

A scorer answers one question: what is each candidate continuation of each row's prefix worth?
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from trimtab.config import ScorerSpec
from trimtab.errors import ScorerLoadError
from trimtab.scorers.loader import Loader, tokenizer
from trimtab.scoring.backbone import Backbone
from trimtab.scoring.cross import CrossBackbone
from trimtab.scoring.pool import Ids
from trimtab.scoring.text import Prompt, Turns
from trimtab_models import checkpoint
from trimtab_models.checkpoint import Family, ScorerInfo


class Scorer(ABC):
    """s(prefix + v) for every candidate v of every row.

    A score is a pure function of (prefix, candidate, strength, prompt): whatever a scorer keeps
    between steps only makes it faster. `trimtab.testing.check_scorer` tests just that.
    """

    family: ClassVar[str]
    """Its name: of `--scorer NAME=PATH,family=...`, and in GET /v1/scorers."""
    checkpointed: ClassVar[bool] = False
    """Whether its path is a checkpoint of ours, which says what it is (ScorerInfo)."""
    composes: ClassVar[bool] = False
    """Whether it is made of other scorers, so that those are loaded before it."""
    hot: ClassVar[bool] = False
    """Whether it may be loaded while the server runs: data alone, never code."""
    distributional: ClassVar[bool] = False
    """Whether it has `histograms` of returns, which kl_budget and floors need."""
    reads: str = "tokens"
    """What it is given: the base's tokens, or text, and in which form; see ScorerSpec.reads."""

    def __init__(self, info: ScorerInfo) -> None:
        self.info = info

    @classmethod
    def pools(cls, spec: ScorerSpec) -> int:
        """How many prefix pools it takes, of the memory that all scorers share."""
        return 0

    @classmethod  # noqa: B027  most families have nothing to look at
    def vet(cls, spec: ScorerSpec) -> None:
        """Refuse what `load` would, before an engine starts; quick, and without an engine's memory.

        Raises:
            ScorerLoadError, OSError, ValueError: it cannot be loaded.
        """

    @classmethod
    def load(cls, spec: ScorerSpec, loader: Loader) -> Self:
        """Load one, as a specification says.

        Raises:
            ScorerLoadError, OSError, ValueError: it cannot be loaded, or not served exactly.
        """
        raise ScorerLoadError(f"a {cls.family} scorer cannot be loaded from a path")

    @abstractmethod
    def score(
        self,
        keys: Sequence[int],
        prefixes: Sequence[Ids],
        candidates: Sequence[Ids],
        strengths: Sequence[float],
        prompts: Sequence[Prompt] = (),
    ) -> Tensor:
        """Scores of all candidates, packed in row order: [Σ candidates], float32.

        keys: one number a row, the same for a row in every step; a hint for caches, no more.
        prefixes: prompt and completion so far, at least one token, each [length] int64.
        candidates: tokens that may come next, at least one a row, each [candidates] int64.
        strengths: what each row's scores will be multiplied by; most families need not know.
        prompts: of each row; if absent, all of a prefix is the answer. Most families need not know.

        May raise anything: the rows it fails for lose their guidance, the engine goes on.
        """

    @property
    def keeps_time(self) -> bool:
        """Whether calls end by themselves, at the latest a forward after their deadline.

        All others are made in a thread, which is left when a call takes too long (asking.py).
        """
        return False

    def reset(self) -> None:  # noqa: B027
        """Drop everything that is kept: a call was cut off in the middle."""

    def forget(self, key: int) -> None:  # noqa: B027  a scorer without a cache has nothing to do
        """Drop what is kept for a row that is gone."""

    def refusal(self, turns: Turns) -> str | None:
        """Why the scorer cannot read a conversation; None if it can, or reads none."""
        return None

    def shortened(self, key: int) -> int:
        """By how many tokens, at most, a row's last texts were too long for the scorer's window."""
        return 0

    @property
    def parameters(self) -> int:
        """How many parameters the scorer's networks have."""
        return 0

    @property
    def tokens_forwarded(self) -> int:
        """Tokens that have gone through the scorer's networks since it was loaded."""
        return 0


class NetworkScorer(Scorer):
    """A scorer that is one network behind one prefix pool."""

    network: ClassVar[Family] = "head"
    """The kind of checkpoint that it is made of."""
    checkpointed = True
    hot = True

    def __init__(self, info: ScorerInfo, backbone: Backbone | CrossBackbone) -> None:
        super().__init__(info)
        self.backbone = backbone
        self.reads = backbone.reads

    @classmethod
    def pools(cls, spec: ScorerSpec) -> int:
        """One."""
        return 1

    @classmethod
    def vet(cls, spec: ScorerSpec) -> None:
        """See Scorer.vet."""
        tokenizer(spec.path)
        checkpoint.vet(spec.path, cls.network)

    @classmethod
    def load(cls, spec: ScorerSpec, loader: Loader) -> Self:
        """See Scorer.load."""
        return cls(*loader.network(spec, cls.network))

    @property
    def keeps_time(self) -> bool:
        """See Scorer.keeps_time; a template or a tokenizer of somebody's may take any time."""
        return isinstance(self.backbone, Backbone)

    def reset(self) -> None:
        """Drop every prefix."""
        self.backbone.reset()

    def forget(self, key: int) -> None:
        """Drop the row's prefix."""
        self.backbone.forget(key)

    def refusal(self, turns: Turns) -> str | None:
        """See Scorer.refusal."""
        if isinstance(self.backbone, CrossBackbone):
            return self.backbone.reader.refusal(turns)
        return None

    def shortened(self, key: int) -> int:
        """See Scorer.shortened."""
        return self.backbone.shortened(key)

    @property
    def parameters(self) -> int:
        """Parameters of backbone and head."""
        return self.backbone.model.num_parameters()

    @property
    def tokens_forwarded(self) -> int:
        """Prefix tokens and candidates that went through the backbone."""
        return self.backbone.tokens_forwarded


def gather_candidates(table: Tensor, candidates: Sequence[Ids]) -> Tensor:
    """Entries of each row's candidates: [rows, vocab, …] → [Σ candidates, …].

    The last entry stands for ids beyond, as in Backbone.
    """
    rows = np.repeat(np.arange(len(candidates)), [len(c) for c in candidates])
    at = np.stack((rows, np.minimum(np.concatenate(candidates), table.shape[1] - 1)))
    row, token = torch.from_numpy(at).to(table.device)
    return table[row, token]
