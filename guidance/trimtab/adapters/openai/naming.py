"""The interface of the two ways to name an upstream's tokens: by id, or by their text."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from trimtab.adapters.openai.positions import UpstreamAnswer
from trimtab.scoring.text import Detokenizer, Turns


@dataclass(frozen=True)
class UpstreamPrompt:
    """The prompt to continue."""

    ids: list[int]
    text: str = ""
    turns: Turns | None = None
    answer_at: int | None = None  # where the prompt ends, if `ids` have the answer's beginning


class Fit(Enum):
    """The result of appending a token to a text."""

    WHOLE = "whole"
    PART = "part"  # ends inside a character, so it cannot be sent as text
    BROKEN = "broken"


class Naming(Protocol):
    """How tokens are named: by id, or by their text."""

    @property
    def path(self) -> str:
        """The endpoint's path."""

    @property
    def ends(self) -> frozenset[int]:
        """Tokens that end an answer."""

    @property
    def length(self) -> float:
        """Maximum tokens of prompt and answer together."""

    @property
    def longest(self) -> int:
        """Maximum characters of a prompt token."""

    @property
    def columns(self) -> int:
        """Number of numbered tokens."""

    @property
    def closed(self) -> bool:
        """Whether the numbered tokens are the whole vocabulary."""

    @property
    def decoder(self) -> Detokenizer:
        """Decodes tokens: the tokenizer, if it is known."""

    def prompt(
        self,
        text: str | None = None,
        ids: Sequence[int] | None = None,
        turns: Turns | None = None,
    ) -> UpstreamPrompt:
        """The prompt to continue, from exactly one of text, ids and turns.

        Raises:
            InvalidRequest: the upstream does not accept this form.
        """

    def answer(self, text: str) -> list[int]:
        """The ids of a whole answer; release them as those of a prompt."""

    def release(self, prompt: UpstreamPrompt) -> None:
        """Forget a prompt whose answers have ended."""

    def body(
        self, prompt: UpstreamPrompt, output: Sequence[int], tokens: int, greedy: bool
    ) -> dict[str, Any]:
        """The body of the call that requests the next tokens."""

    def read(self, data: Any) -> UpstreamAnswer:
        """Parse the answer of the call.

        Raises:
            UnusableAnswer: the answer cannot be used.
        """

    def text(self, prompt: UpstreamPrompt, output: Sequence[int]) -> str:
        """The text of the answer."""

    def decode(self, token_ids: Any, /, *, skip_special_tokens: bool = False) -> str:
        """The text of ids of tokens or prompts."""

    def fit(self, output: Sequence[int], token: int) -> Fit:
        """The result of appending a token to the answer."""

    def tail(self, output: Sequence[int]) -> int:
        """Number of last tokens that form an incomplete character."""
