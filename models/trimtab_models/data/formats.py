"""Records as rollouts, preference pairs and rankings: one reader a format.

The implicit prompt of a preference is what both sides begin with: of texts the first tokens that
they share, each side tokenised whole; of chats the first messages. Where TRL reads a text prompt
beside two chats as implicit, so does this.
"""

from collections.abc import Callable, Iterable
from itertools import pairwise, takewhile
from typing import Any

import torch

from trimtab_models.data.chats import messages
from trimtab_models.data.encoding import Encoder, cut
from trimtab_models.data.faults import (
    DataRow,
    Fault,
    Item,
    Left,
    Record,
    convert,
    field,
    kind,
    numbered,
    word,
)
from trimtab_models.data.lengths import length
from trimtab_models.rows import Pair, Ranked, Rollout

SCORES = (("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"))
"""What preferences may say of how good the two sides are."""
ASKED = ("instruction", "input", "question", "query", "context", "problem", "system")
"""Columns that hold what is answered, in data of other formats than these."""
FLOAT32 = torch.finfo(torch.float32).max


def reward(record: Record) -> float:
    """A rollout's reward: its "reward", or else its "label", true being 1 and false 0.

    Raises:
        Fault: there is neither, or it is no finite number of float32.
    """
    name = "label" if record.get("reward") is None else "reward"
    if record.get(name) is None:
        raise Fault("there is neither 'reward' nor 'label'")
    value = record[name]
    if not isinstance(value, int | float):
        raise Fault(f"{name!r} is {kind(value)}; expected a number, true or false")
    if not abs(value) <= FLOAT32:  # so is NaN
        raise Fault(f"{name!r} is {word(value, 20)}; expected a finite number")
    return float(value)


def strength(record: Record) -> float:
    """The strength of soft-value guidance that a rollout was drawn with; 0 if it says nothing.

    Raises:
        Fault: it is no finite number.
    """
    value = record.get("strength", 0.0)
    if not finite(value):
        raise Fault("'strength' is not a finite number")
    return float(value)


def log_ratios(record: Record, completion: list[int]) -> tuple[float, ...]:
    """log π/π0 of each token of a guided rollout's completion; empty if it says nothing.

    Those of what followed the completion's EOS are left off, as the tokens are.

    Raises:
        Fault: they are not a finite number for each token of the record.
    """
    value = record.get("log_ratios", [])
    tokens = len(record.get("completion_token_ids", completion))
    if not isinstance(value, list) or len(value) not in (0, tokens):
        raise Fault(f"'log_ratios' is not a list of {tokens} numbers, one for each token")
    if not all(map(finite, value)):
        raise Fault("'log_ratios' holds what is no finite number")
    return tuple(map(float, value[: len(completion)]))


def finite(value: object) -> bool:
    """Whether it is a number that float32 holds."""
    return isinstance(value, int | float) and type(value) is not bool and abs(value) <= FLOAT32


def _rollout(record: Record, encoder: Encoder) -> Rollout:
    completion = encoder.completion(record, "completion")
    ratios = log_ratios(record, completion)
    return Rollout(encoder.prompt(record), completion, reward(record), strength(record), ratios)


def _in_order(*scores: Any) -> None:
    """Look at the scores that came with a preference or a ranking, the best answer's first.

    Raises:
        Left: two of them are equal.
        Fault: they are in another order, or not all finite numbers.
    """
    if not all(map(finite, scores)):
        raise Fault("the scores of the completions are not all finite numbers")
    if any(a < b for a, b in pairwise(scores)):
        raise Fault("the scores of the completions rise; the best completion comes first")
    if any(a == b for a, b in pairwise(scores)):
        raise Left("two of their completions have the same score (a tie)")


def _pair(record: Record, encoder: Encoder) -> Pair:
    for names in SCORES:
        if all(name in record for name in names):
            _in_order(*(record[name] for name in names))
    sides = ("chosen", "rejected")
    chats = all(isinstance(record.get(side), list) for side in sides)
    prompted = any(name in record for name in ("prompt", "prompt_token_ids"))
    if chats and (not prompted or isinstance(record.get("prompt"), str)):
        chosen, rejected = (messages(record, side) for side in sides)
        shared = _shared(chosen, rejected)
        if shared == len(chosen) == len(rejected):
            raise Fault("'chosen' and 'rejected' are the same")
        record = {
            **record,
            "prompt": chosen[:shared],
            "chosen": chosen[shared:],
            "rejected": rejected[shared:],
        }
        pair = _explicit(record, encoder)
    elif prompted:
        pair = _explicit(record, encoder)
    else:
        pair = _implicit(record, encoder)
    if pair.chosen == pair.rejected:
        raise Fault("'chosen' and 'rejected' are the same")
    return pair


def _explicit(record: Record, encoder: Encoder) -> Pair:
    chosen, rejected = (encoder.completion(record, side) for side in ("chosen", "rejected"))
    return Pair(encoder.prompt(record), chosen, rejected)


def _implicit(record: Record, encoder: Encoder) -> Pair:
    """A pair of whole texts. EOS may well stand in their prompt, at the end of an earlier turn."""
    if apart := [name for name in ASKED if isinstance(record.get(name), str)]:
        raise Fault(
            f"there is no 'prompt', but a text {apart[0]!r}; if that is what is answered, name it "
            "'prompt' (an 'instruction' with its 'input'), else take it out"
        )
    wholes, ends = [], []
    for side in ("chosen", "rejected"):
        ids = encoder.given(record, side)
        ends.append(encoder.finish if ids is None else lambda rest: cut(rest, encoder.eos))
        if ids is None:
            text = field(record, side)
            if not isinstance(text, str):
                raise Fault(f"{side!r} is {kind(text)}; expected text, or messages on both sides")
            ids = encoder.ids(text, side)
        wholes.append(ids)
    if wholes[0] == wholes[1]:
        raise Fault("'chosen' and 'rejected' are the same")
    shared = _shared(*wholes)
    if not shared:
        raise Fault("there is no 'prompt', and 'chosen' and 'rejected' share no beginning")
    chosen, rejected = (end(ids[shared:]) for ids, end in zip(wholes, ends, strict=True))
    if not (chosen and rejected):
        raise Fault("one side holds nothing but what it shares with the other")
    return Pair(wholes[0][:shared], chosen, rejected)


def _shared(a: list[Any], b: list[Any]) -> int:
    """How many first elements two lists have in common."""
    return sum(1 for _ in takewhile(lambda both: both[0] == both[1], zip(a, b, strict=False)))


def _ranking(record: Record, encoder: Encoder) -> Ranked:
    values, ids = record.get("completions"), record.get("completions_token_ids")
    given = field(record, "completions") if ids is None else ids
    for value in (values, ids):
        if value is not None and (not isinstance(value, list) or len(value) != len(given)):
            raise Fault("'completions' and their ids must be lists, of one length")
    if len(given) < 2:
        raise Fault(f"'completions' has {len(given)}; a ranking needs two or more")
    for name in ("scores", "rewards"):
        if isinstance(scores := record.get(name), list) and len(scores) == len(given):
            _in_order(*scores)
    # Each completion as a field of its own, named as it is called in messages.
    parts = dict(record)
    names = [f"completions[{i}]" for i in range(len(given))]
    for suffix, listed in (("", values), ("_token_ids", ids)):
        parts |= {f"{name}{suffix}": one for name, one in zip(names, listed or [], strict=False)}
    completions = [encoder.completion(parts, name) for name in names]
    for i, one in enumerate(completions):
        if one in completions[:i]:
            raise Fault(f"completions {completions.index(one)} and {i} (from 0) are the same")
    return Ranked(encoder.prompt(record), completions)


FORMATS: dict[str, Callable[[Record, Encoder], Any]] = {
    "rollouts": _rollout,
    "pairs": _pair,
    "ranked": _ranking,
}
"""The reader of a record, by the name of an objective's `data`."""


def items(
    rows: Iterable[DataRow],
    reader: Callable[[Record, Encoder], Item],
    encoder: Encoder,
    reads: int | None = None,
) -> list[Item]:
    """Every row as token ids, of at most `reads`; raises `BrokenRows`."""

    def read(record: Record) -> Item:
        # A column that only other rows fill is null in `datasets`: as good as not there.
        item = reader({k: v for k, v in record.items() if v is not None}, encoder)
        if reads is not None and (tokens := length(item)) > reads:
            raise Fault(
                f"prompt and completion have {tokens} tokens, and the network reads {reads}; set "
                f"max_length to {reads} or less to have such rows cut"
            )
        return item

    return convert(rows, read, "tokenising")


def rollouts(records: Iterable[Record], tokenizer: Any) -> list[Rollout]:
    """Rollouts and unpaired records as token ids.

    Raises:
        ValueError: records that cannot be used, each named by its number.
    """
    return items(numbered(records), _rollout, Encoder(tokenizer))


def pairs(records: Iterable[Record], tokenizer: Any) -> list[Pair]:
    """Preference records as token ids; raises as `rollouts`."""
    return items(numbered(records), _pair, Encoder(tokenizer))


def ranked(records: Iterable[Record], tokenizer: Any) -> list[Ranked]:
    """Ranking records as token ids; raises as `rollouts`."""
    return items(numbered(records), _ranking, Encoder(tokenizer))
