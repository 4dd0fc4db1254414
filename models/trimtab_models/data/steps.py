"""Rewards of steps: those that arrive before an answer's end.

    rewards  [[position, value], ...]                after the completion's first `position` tokens
    spans    [{"start", "end", "value", "aspect"?}]  for the characters start to end − 1 of the
                                                     answer's text; arrives with the token that
                                                     completes them

A rollout may have both, and rewards at the same place add up. The return of the answer is their sum
and its `reward`, if there is one, which arrives at the end. With an aspect chosen, the spans of
that aspect are the only rewards. An object of `rewards` by their names is something else: other
rewards of the whole answer, which are not read.

Spans of a text with aspects: Wu et al., "Fine-Grained Human Feedback Gives Better Rewards for
Language Model Training" (arXiv 2306.01693), section 3.
"""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, NamedTuple

from trimtab_models.data.chats import messages
from trimtab_models.data.faults import Fault, Record, field, json_type, word
from trimtab_models.data.numbers import finite

UNFINISHED = "\ufffd"
"""What tokens of an unfinished character decode to."""


class Span(NamedTuple):
    """A span's end in characters, its reward, and what it is for."""

    end: int
    value: float
    aspect: str | None


def values(record: Record, aspect: str | None = None) -> list[float] | None:
    """The rewards that arrive at steps, in no order; None if the record has no such field.

    aspect: those of the spans of this aspect alone.

    Raises:
        Fault: they do not have the form of the module's docstring.
    """
    if aspect is not None:
        field(record, "spans")
    if not _is_stepwise(record):
        return None
    arriving = [value for _, value in _positions(record)] if aspect is None else []
    return [*arriving, *(span.value for span in _spans(record, aspect))]


def aspects(record: Record) -> set[str]:
    """The aspects of a record's spans; raises as `values`."""
    return {span.aspect for span in _spans(record) if span.aspect is not None}


def per_token(
    record: Record, completion: Sequence[int], tokenizer: Any, aspect: str | None = None
) -> tuple[float, ...]:
    """The reward that arrives with each token of a completion; empty if it has none of steps.

    Raises:
        Fault: as `values`; a position or a span is not in the completion, or its tokens do not
            spell the text of the spans.
    """
    if not _is_stepwise(record):
        return ()
    arriving = [0.0] * len(completion)
    for position, value in _positions(record) if aspect is None else ():
        if not 1 <= position <= len(completion):
            raise Fault(
                f"'rewards' has the position {word(position, 20)}; expected 1 to "
                f"{len(completion)}, a number of tokens of the completion"
            )
        arriving[position - 1] += value
    if spans := _spans(record, aspect):
        text = _text(record)
        places = _Places(text, completion, tokenizer)
        for span in spans:
            if span.end > len(text):
                raise Fault(
                    f"'spans' has one that ends at {span.end}, but the text of the completion has "
                    f"{len(text)} characters"
                )
            arriving[places.token(span.end)] += span.value
    return tuple(arriving)


def _is_stepwise(record: Record) -> bool:
    """Whether a rollout has rewards of steps, if only an empty list of them."""
    listed = record.get("rewards") is not None and not isinstance(record["rewards"], dict)
    return listed or record.get("spans") is not None


def _positions(record: Record) -> list[tuple[int, float]]:
    rewards = record.get("rewards")
    if rewards is None or isinstance(rewards, dict):
        return []
    if not isinstance(rewards, list):
        raise Fault(f"'rewards' is {json_type(rewards)}; expected [[position, value], …]")
    for one in rewards:
        if not isinstance(one, list) or len(one) != 2 or not all(map(finite, one)):
            raise Fault("'rewards' is not a list of [position, value], each two finite numbers")
        if one[0] != int(one[0]):
            raise Fault(f"'rewards' has the position {word(one[0], 20)}; expected a whole number")
    # A column of a data set has one type, so that there whole numbers are 3.0.
    return [(int(position), float(value)) for position, value in rewards]


def _spans(record: Record, aspect: str | None = None) -> list[Span]:
    """The spans, or those of an aspect."""
    spans = record.get("spans")
    if spans is None:
        return []
    if not isinstance(spans, list):
        raise Fault(f"'spans' is {json_type(spans)}; expected a list of objects")
    read = [_span(one) for one in spans]
    return [span for span in read if aspect is None or span.aspect == aspect]


def _span(one: Any) -> Span:
    if not isinstance(one, dict) or not {"start", "end", "value"} <= set(one):
        raise Fault("'spans' has one without 'start', 'end' and 'value'")
    start, end, aspect = one["start"], one["end"], one.get("aspect")
    if not (type(start) is type(end) is int and 0 <= start < end):
        raise Fault("'spans' has one whose 'start' and 'end' are not whole numbers, start < end")
    if not finite(one["value"]):
        raise Fault("'spans' has one whose 'value' is not a finite number")
    if aspect is not None and not isinstance(aspect, str):
        raise Fault(f"'spans' has one whose 'aspect' is {json_type(aspect)}; expected text")
    return Span(end, float(one["value"]), aspect)


def _text(record: Record) -> str:
    """The text that spans point into: the completion, or the content of its message."""
    value = field(record, "completion")
    if isinstance(value, str):
        return value
    return "".join(message.get("content") or "" for message in messages(record, "completion"))


class _Places:
    """The tokens of a text's characters.

    A prefix of the tokens decodes to a prefix of the text, except at an unfinished character.
    """

    def __init__(self, text: str, completion: Sequence[int], tokenizer: Any) -> None:
        self.completion, self.tokenizer = completion, tokenizer
        # A template, or a tokenizer as it decodes, may drop the spaces at an answer's ends.
        bare = text.strip().rstrip(UNFINISHED)
        at = self._decode(len(completion)).find(bare)
        if at < 0:
            raise Fault(
                "the tokens of the completion do not spell the text that 'spans' point into; "
                "leave its token ids out, or use 'rewards' with positions in tokens"
            )
        self.shift = at - (len(text) - len(text.lstrip()))

    def token(self, end: int) -> int:
        """The index of the token that completes the text's first `end` characters."""
        lengths = range(1, len(self.completion) + 1)
        place = bisect_left(lengths, end + self.shift, key=lambda n: len(self._decode(n)))
        return min(place, len(self.completion) - 1)

    def _decode(self, tokens: int) -> str:
        text: str = self.tokenizer.decode(
            list(self.completion[:tokens]),
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
        return text.rstrip(UNFINISHED)
