"""What an upstream reveals at a step, and what the two ways to name its tokens have in common."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

from trimtab.scoring.text import Detokenizer, Turns
from trimtab_server.upstream.client import Unusable

NONE = -1
"""In place of a token that has no name here."""
FLOOR = -9000.0
"""vLLM writes −9999 for −inf."""
ROUNDING = 0.02
"""What probabilities may sum to beyond 1."""


@dataclass(frozen=True)
class UpstreamPrompt:
    """What is to be continued."""

    ids: list[int]
    text: str = ""
    turns: Turns | None = None


@dataclass(frozen=True)
class Position:
    """What was revealed of one step."""

    token: int  # the upstream's own choice
    logprobs: dict[int, float]  # the most likely tokens, falling

    @property
    def unrevealed(self) -> float:
        """Probability of all other tokens together."""
        return max(0.0, 1.0 - math.fsum(map(math.exp, self.logprobs.values())))


@dataclass(frozen=True)
class UpstreamAnswer:
    """Consecutive positions of one call."""

    positions: list[Position] = field(default_factory=list)
    """Empty if the upstream ended the answer without showing a token."""


class Fit(Enum):
    """What a token makes of the text that it is put after."""

    WHOLE = "whole"
    PART = "part"  # of a character, so that it cannot be sent as text
    BROKEN = "broken"


class Naming(Protocol):
    """How tokens are named: by id, or by their text."""

    @property
    def path(self) -> str:
        """Where to ask."""

    @property
    def ends(self) -> frozenset[int]:
        """Tokens that end an answer."""

    @property
    def length(self) -> float:
        """Most tokens of prompt and answer together."""

    @property
    def longest(self) -> int:
        """Characters that a token of a prompt may have."""

    @property
    def columns(self) -> int:
        """Tokens that have a number."""

    @property
    def closed(self) -> bool:
        """Whether these are all the tokens there are."""

    @property
    def decoder(self) -> Detokenizer:
        """What makes text of tokens: the tokenizer, if it is here."""

    def prompt(
        self,
        text: str | None = None,
        ids: Sequence[int] | None = None,
        turns: Turns | None = None,
    ) -> UpstreamPrompt:
        """What is to be continued, given in one of three ways.

        Raises:
            InvalidRequest: the upstream cannot be given it so.
        """

    def release(self, prompt: UpstreamPrompt) -> None:
        """Forget a prompt, whose answers have ended."""

    def body(
        self, prompt: UpstreamPrompt, output: Sequence[int], tokens: int, greedy: bool
    ) -> dict[str, Any]:
        """The call that asks for the next tokens."""

    def read(self, data: Any) -> UpstreamAnswer:
        """What it answered.

        Raises:
            Unusable: nothing that can be used.
        """

    def text(self, prompt: UpstreamPrompt, output: Sequence[int]) -> str:
        """What the answer reads."""

    def decode(self, token_ids: Any, /, *, skip_special_tokens: bool = False) -> str:
        """The text of any ids, prompts included."""

    def fit(self, output: Sequence[int], token: int) -> Fit:
        """What a token makes of the answer so far."""

    def tail(self, output: Sequence[int]) -> int:
        """How many of the last tokens are a character that is not whole yet."""


Name = Callable[[str, Any], int]
"""A token's text, and its bytes if the upstream tells → its number, or NONE."""


def read_completion(data: Any, top: int, name: Name) -> UpstreamAnswer:
    """An answer of a completions endpoint, at most `top` alternatives a position."""

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
    # vLLM adds the token that was drawn, wherever it ranks: no chance shall decide what is seen.
    for named, value in sorted(pairs, key=lambda pair: -_checked(pair[1]))[:top]:
        if named != NONE and value > FLOOR:
            known = logprobs.get(named)  # two tokens may read the same
            logprobs[named] = value if known is None else _add(known, value)
    if not logprobs:
        raise Unusable("it reveals no token that can be gone on from")
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
