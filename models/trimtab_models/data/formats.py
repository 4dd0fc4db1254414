"""Records as rollouts, preference pairs and rankings: one reader for each format.

The implicit prompt of a preference is the common beginning of both sides: of texts, the first
common tokens, with each side tokenised as a whole; of chats, the first common messages. As in TRL,
a text prompt beside two chats is ignored and the prompt is implicit.
"""

import math
from collections.abc import Callable, Iterable
from itertools import pairwise, takewhile
from typing import Any

from trimtab_models.data import steps
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
    json_type,
    numbered,
    word,
)
from trimtab_models.data.lengths import length
from trimtab_models.data.numbers import FLOAT32, finite
from trimtab_models.rows import Pair, Ranked, Rollout

SCORES = (("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"))
"""Optional scores of the two sides of a preference."""
QUESTIONS = ("instruction", "input", "question", "query", "context", "problem", "system")
"""Columns of the prompt in data of other formats."""


def reward(record: Record) -> float:
    """A rollout's reward: its "reward", or else its "label", with true as 1 and false as 0.

    Raises:
        Fault: there is neither, or it is not finite in float32.
    """
    name = "label" if record.get("reward") is None else "reward"
    if record.get(name) is None:
        raise Fault("there is neither 'reward' nor 'label'")
    value = record[name]
    if not isinstance(value, int | float):
        raise Fault(f"{name!r} is {json_type(value)}; expected a number, true or false")
    if not abs(value) <= FLOAT32:  # also true for NaN
        raise Fault(f"{name!r} is {word(value, 20)}; expected a finite number")
    return float(value)


def strength(record: Record) -> float:
    """The strength of soft-value guidance that a rollout was sampled with; 0 if absent.

    Raises:
        Fault: it is not a finite number.
    """
    value = record.get("strength", 0.0)
    if not finite(value):
        raise Fault("'strength' is not a finite number")
    return float(value)


def per_token(record: Record, name: str, completion: list[int]) -> tuple[float, ...]:
    """A field with one number for each token of a rollout's completion; empty if absent.

    Those after the completion's EOS are cut, as its tokens are.

    Raises:
        Fault: they are not one finite number for each token of the record.
    """
    value = record.get(name, [])
    tokens = len(record.get("completion_token_ids", completion))
    if not isinstance(value, list) or len(value) not in (0, tokens):
        raise Fault(f"{name!r} is not a list of {tokens} numbers, one for each token")
    if not all(map(finite, value)):
        raise Fault(f"{name!r} has a value that is not a finite number")
    return tuple(map(float, value[: len(completion)]))


def total(record: Record, aspect: str | None = None) -> float:
    """A rollout's return: its reward, and those of its steps. A row with steps may have no other.

    aspect: the return of the spans of this aspect alone.

    Raises:
        Fault: a reward is missing, not a number, or they are not finite together.
    """
    arriving = steps.values(record, aspect)
    if arriving is None:
        return reward(record)
    final = aspect is None and (record.get("reward"), record.get("label")) != (None, None)
    value = math.fsum([*arriving, reward(record) if final else 0.0])
    if not finite(value):
        raise Fault("the rewards of its steps are too large together")
    return value


def _rollout(record: Record, encoder: Encoder) -> Rollout:
    completion = encoder.completion(record, "completion")
    encoder.aspects.update(steps.aspects(record))
    return Rollout(
        encoder.prompt(record),
        completion,
        total(record, encoder.aspect),
        strength(record),
        per_token(record, "log_ratios", completion),
        prefix_rewards=per_token(record, "prefix_rewards", completion),
        step_rewards=steps.per_token(record, completion, encoder.tokenizer, encoder.aspect),
    )


def _in_order(*scores: Any) -> None:
    """Check the scores of a preference or a ranking, the best answer first.

    Raises:
        Left: two of them are equal.
        Fault: they are in another order, or not all finite numbers.
    """
    if not all(map(finite, scores)):
        raise Fault("the scores of the completions are not all finite numbers")
    if any(a < b for a, b in pairwise(scores)):
        raise Fault("the scores of the completions rise; the best completion must be first")
    if any(a == b for a, b in pairwise(scores)):
        raise Left("two of their completions have the same score (a tie)")


def _rewards(record: Record) -> tuple[float, ...]:
    """The rewards of the two sides, from the first of `SCORES`; empty without them.

    Raises:
        as `_in_order`, if the record has no measured odds, which say themselves who wins.
    """
    known = [tuple(record[n] for n in names) for names in SCORES if all(n in record for n in names)]
    for scores in known:
        if record.get("odds") and all(map(finite, scores)):
            continue
        _in_order(*scores)
    return tuple(map(float, known[0])) if known else ()


def _odds(record: Record, pair: Pair) -> tuple[tuple[int, int, float], ...]:
    """The measured odds of a preference, see `Pair`; empty without them.

    Points after a side's EOS count as that side's end, as its tokens after it are cut.

    Raises:
        Fault: the record lacks the sampled ids of a side, or a point is not of such numbers.
    """
    points = record.get("odds") or []
    if not points:
        return ()
    sides = [record.get(f"{side}_token_ids") for side in ("chosen", "rejected")]
    if not all(sides) or not ("prompt" in record or "prompt_token_ids" in record):
        raise Fault(
            "'odds' count tokens, so they need a 'prompt', 'chosen_token_ids' and "
            "'rejected_token_ids'"
        )
    most = [len(side or ()) for side in sides]

    def valid(point: Any) -> bool:
        return (
            isinstance(point, list)
            and len(point) == 3
            and all(type(n) is int and 0 < n <= end for n, end in zip(point, most, strict=False))
            and finite(point[2])
            and 0 <= point[2] <= 1
        )

    if not (isinstance(points, list) and all(map(valid, points))):
        raise Fault(
            "'odds' is not a list of [tokens of 'chosen', tokens of 'rejected', probability that "
            f"'chosen' wins], with at most {most[0]} and {most[1]} tokens"
        )
    ends = len(pair.chosen), len(pair.rejected)
    return tuple((min(i, ends[0]), min(j, ends[1]), float(p)) for i, j, p in points)


def _pair(record: Record, encoder: Encoder) -> Pair:
    rewards = _rewards(record)
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
    return pair._replace(rewards=rewards, odds=_odds(record, pair))


def _explicit(record: Record, encoder: Encoder) -> Pair:
    chosen, rejected = (encoder.completion(record, side) for side in ("chosen", "rejected"))
    return Pair(encoder.prompt(record), chosen, rejected)


def _implicit(record: Record, encoder: Encoder) -> Pair:
    """A pair of whole texts. Their prompt may contain EOS, at the end of an earlier turn."""
    if questions := [name for name in QUESTIONS if isinstance(record.get(name), str)]:
        raise Fault(
            f"there is no 'prompt', but a text {questions[0]!r}; if it is the prompt, rename it to "
            "'prompt' (join an 'instruction' and its 'input'), else remove it"
        )
    wholes, ends = [], []
    for side in ("chosen", "rejected"):
        ids = encoder.stored_ids(record, side)
        ends.append(encoder.finish if ids is None else lambda rest: cut(rest, encoder.eos))
        if ids is None:
            text = field(record, side)
            if not isinstance(text, str):
                raise Fault(
                    f"{side!r} is {json_type(text)}; expected text, or messages on both sides"
                )
            ids = encoder.ids(text, side)
        wholes.append(ids)
    if wholes[0] == wholes[1]:
        raise Fault("'chosen' and 'rejected' are the same")
    shared = _shared(*wholes)
    if not shared:
        raise Fault("there is no 'prompt', and 'chosen' and 'rejected' share no beginning")
    chosen, rejected = (end(ids[shared:]) for ids, end in zip(wholes, ends, strict=True))
    if not (chosen and rejected):
        raise Fault("one side is only the common beginning of both")
    return Pair(wholes[0][:shared], chosen, rejected)


def _shared(a: list[Any], b: list[Any]) -> int:
    """The number of equal first elements of two lists."""
    return sum(1 for _ in takewhile(lambda both: both[0] == both[1], zip(a, b, strict=False)))


def _ranking(record: Record, encoder: Encoder) -> Ranked:
    values, ids = record.get("completions"), record.get("completions_token_ids")
    ranked = field(record, "completions") if ids is None else ids
    for value in (values, ids):
        if value is not None and (not isinstance(value, list) or len(value) != len(ranked)):
            raise Fault("'completions' and their ids must be lists of the same length")
    if len(ranked) < 2:
        raise Fault(f"'completions' has {len(ranked)}; a ranking needs two or more")
    for name in ("scores", "rewards"):
        if isinstance(scores := record.get(name), list) and len(scores) == len(ranked):
            _in_order(*scores)
    # Each completion as a separate field, with the name for messages.
    parts = dict(record)
    names = [f"completions[{i}]" for i in range(len(ranked))]
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
"""The reader of a record for each value of an objective's `data`."""


def items(
    rows: Iterable[DataRow],
    reader: Callable[[Record, Encoder], Item],
    encoder: Encoder,
    reads: int | None = None,
) -> list[Item]:
    """Every row as token ids; raises `BrokenRows`, also for rows of more than `reads` tokens."""

    def read(record: Record) -> Item:
        # In `datasets` a column that only other rows have is null; it counts as absent.
        item = reader({k: v for k, v in record.items() if v is not None}, encoder)
        if reads is not None and (tokens := length(item)) > reads:
            raise Fault(
                f"prompt and completion have {tokens} tokens, but the network reads {reads}; set "
                f"max_length to {reads} or less to cut such rows"
            )
        return item

    return convert(rows, read, "tokenising")


def rollouts(records: Iterable[Record], tokenizer: Any) -> list[Rollout]:
    """Rollouts and unpaired records as token ids.

    Raises:
        ValueError: records cannot be used; they are named by number.
    """
    return items(numbered(records), _rollout, Encoder(tokenizer))


def pairs(records: Iterable[Record], tokenizer: Any) -> list[Pair]:
    """Preference records as token ids; raises as `rollouts`."""
    return items(numbered(records), _pair, Encoder(tokenizer))


def ranked(records: Iterable[Record], tokenizer: Any) -> list[Ranked]:
    """Ranking records as token ids; raises as `rollouts`."""
    return items(numbered(records), _ranking, Encoder(tokenizer))
