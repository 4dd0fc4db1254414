"""The revealed tokens of each step, and how they are read from an upstream's answer."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from trimtab.adapters.openai.client import UnusableAnswer

NONE = -1
"""Number of a token that cannot be named."""
FLOOR = -9000.0
"""vLLM writes −9999 for −inf."""
ROUNDING = 0.02
"""Tolerance of Σ p ≤ 1."""


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
        raise UnusableAnswer("it has no log-probabilities in OpenAI's shape") from None
    if not answer.positions and not ended:
        raise UnusableAnswer("it has no token, and does not say that the answer ended")
    return answer


def _position(token: int, pairs: Iterable[tuple[int, Any]], top: int) -> Position:
    logprobs: dict[int, float] = {}
    # vLLM adds the sampled token at any rank; keep only the top ones, independent of chance.
    for named, value in sorted(pairs, key=lambda pair: -_checked(pair[1]))[:top]:
        if named != NONE and value > FLOOR:
            known = logprobs.get(named)  # two tokens may have the same text
            logprobs[named] = value if known is None else _add(known, value)
    if not logprobs:
        raise UnusableAnswer("it reveals no token that can be continued")
    if math.fsum(map(math.exp, logprobs.values())) > 1 + ROUNDING:
        raise UnusableAnswer("its probabilities sum to more than 1")
    return Position(token, dict(sorted(logprobs.items(), key=lambda pair: -pair[1])))


def _checked(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError
    if not math.isfinite(value) or value > ROUNDING:
        raise UnusableAnswer("a log-probability is not a number of at most 0")
    return value


def _add(a: float, b: float) -> float:
    return max(a, b) + math.log1p(math.exp(-abs(a - b)))
