"""The revealed tokens of a step, and the interface of the two ways to name tokens."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

from trimtab.scoring.text import Detokenizer, Turns
from trimtab_server.upstream.client import Unusable

NONE = -1
"""Number of a token that cannot be named."""
FLOOR = -9000.0
"""vLLM writes −9999 for −inf."""
ROUNDING = 0.02
"""Tolerance of Σ p ≤ 1."""


@dataclass(frozen=True)
class UpstreamPrompt:
    """The prompt to continue."""

    ids: list[int]
    text: str = ""
    turns: Turns | None = None


@dataclass(frozen=True)
class Position:
    """The revealed tokens of one step."""

    token: int  # the upstream's own sample
    logprobs: dict[int, float]  # of the most likely tokens, descending

    @property
    def unrevealed(self) -> float:
        """Total probability of all other tokens."""
        return max(0.0, 1.0 - math.fsum(map(math.exp, self.logprobs.values())))


@dataclass(frozen=True)
class UpstreamAnswer:
    """Consecutive positions of one call."""

    positions: list[Position] = field(default_factory=list)
    """Empty if the upstream ended the answer without a token."""


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

    def release(self, prompt: UpstreamPrompt) -> None:
        """Forget a prompt whose answers have ended."""

    def body(
        self, prompt: UpstreamPrompt, output: Sequence[int], tokens: int, greedy: bool
    ) -> dict[str, Any]:
        """The body of the call that requests the next tokens."""

    def read(self, data: Any) -> UpstreamAnswer:
        """Parse the answer of the call.

        Raises:
            Unusable: the answer cannot be used.
        """

    def text(self, prompt: UpstreamPrompt, output: Sequence[int]) -> str:
        """The text of the answer."""

    def decode(self, token_ids: Any, /, *, skip_special_tokens: bool = False) -> str:
        """The text of ids of tokens or prompts."""

    def fit(self, output: Sequence[int], token: int) -> Fit:
        """The result of appending a token to the answer."""

    def tail(self, output: Sequence[int]) -> int:
        """Number of last tokens that form an incomplete character."""


Name = Callable[[str, Any], int]
"""A token's text, and its bytes if the upstream sends them → its number, or NONE."""


def read_completion(data: Any, top: int, name: Name) -> UpstreamAnswer:
    """An answer of a completions endpoint, with at most `top` alternatives per position."""

    def positions(choice: Mapping[str, Any]) -> Iterable[Position]:
        logprobs = choice["logprobs"] or {"tokens": []}
        for i, token in enumerate(logprobs["tokens"]):
            pairs = [
                (name(text, None), value) for text, value in logprobs["top_logprobs"][i].items()
            ]
            yield _position(name(token, None), pairs, top)

    return _read(data, positions)


def read_chat(data: Any, top: int, name: Name) -> UpstreamAnswer:
    """An answer of a chat endpoint."""

    def positions(choice: Mapping[str, Any]) -> Iterable[Position]:
        for step in (choice["logprobs"] or {}).get("content") or ():
            pairs = [(name(t["token"], t.get("bytes")), t["logprob"]) for t in step["top_logprobs"]]
            yield _position(name(step["token"], step.get("bytes")), pairs, top)

    return _read(data, positions)


def _read(
    data: Any, positions: Callable[[Mapping[str, Any]], Iterable[Position]]
) -> UpstreamAnswer:
    try:
        choice = data["choices"][0]
        answer = UpstreamAnswer(list(positions(choice)))
        ended = choice["finish_reason"] not in (None, "length")
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError):
        raise Unusable("it has no log-probabilities in OpenAI's shape") from None
    if not answer.positions and not ended:
        raise Unusable("it has no token, and does not say that the answer ended")
    return answer


def _position(token: int, pairs: Iterable[tuple[int, Any]], top: int) -> Position:
    logprobs: dict[int, float] = {}
    # vLLM adds the sampled token at any rank; keep only the top ones, independent of chance.
    for named, value in sorted(pairs, key=lambda pair: -_checked(pair[1]))[:top]:
        if named != NONE and value > FLOOR:
            known = logprobs.get(named)  # two tokens may have the same text
            logprobs[named] = value if known is None else _add(known, value)
    if not logprobs:
        raise Unusable("it reveals no token that can be continued")
    if math.fsum(map(math.exp, logprobs.values())) > 1 + ROUNDING:
        raise Unusable("its probabilities sum to more than 1")
    return Position(token, dict(sorted(logprobs.items(), key=lambda pair: -pair[1])))


def _checked(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError
    if not math.isfinite(value) or value > ROUNDING:
        raise Unusable("a log-probability is not a number of at most 0")
    return value


def _add(a: float, b: float) -> float:
    return max(a, b) + math.log1p(math.exp(-abs(a - b)))
