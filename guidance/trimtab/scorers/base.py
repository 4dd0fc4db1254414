"""The one interface of all scorer families.

A scorer answers one question: what is each candidate continuation of each row's prefix worth?
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from torch import Tensor

from trimtab.backbone import Backbone
from trimtab.cache import Ids
from trimtab_models.checkpoint import ScorerInfo

Turns: TypeAlias = Sequence[Mapping[str, str]]
"""A conversation: each turn has a `role` and a `content`."""


@dataclass(frozen=True)
class Prompt:
    """Where a row's prompt ends, for scorers that read text."""

    length: int
    """Tokens of the prompt; what follows is the answer."""
    turns: Turns | None = None
    """The conversation that the base's chat template made the prompt of, if it was one."""


class Decodes(Protocol):
    """What makes text of token ids: a tokenizer, as far as scorers need one."""

    def decode(self, token_ids: Any, /, *, skip_special_tokens: bool = False) -> str:
        """The text of some ids."""


class Scorer(ABC):
    """s(prefix + v) for every candidate v of every row.

    A score is a pure function of (prefix, candidate, strength, prompt): whatever a scorer keeps
    between steps only makes it faster. `trimtab.testing.check_scorer` tests just that.
    """

    family: str
    reads_text = False
    """Whether it reads text alone, so that it serves a base whose tokens are not known."""

    def __init__(self, info: ScorerInfo) -> None:
        self.info = info

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

    def forget(self, key: int) -> None:  # noqa: B027  a scorer without a cache has nothing to do
        """Drop what is kept for a row that is gone."""

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

    def __init__(self, info: ScorerInfo, backbone: Backbone) -> None:
        super().__init__(info)
        self.backbone = backbone

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
