"""Rollouts and preference pairs: JSON Lines on disk, token ids in memory, padded rows in training.

A rollout line is {"prompt", "completion", "label"}, a preference line {"prompt", "chosen",
"rejected"}, each field text or a list of chat messages, as TRL has them. Beside the text a line may
carry the ids as they were sampled ("prompt_token_ids", "completion_token_ids", ...): they are used
as they stand, for a tokenizer may cut the same text differently.
"""

import json
import math
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from trimtab_models.rows import Pair, Rollout

Record = dict[str, Any]


def read(path: str | Path) -> list[Record]:
    """The records of a JSON Lines file.

    Raises:
        ValueError: a line is not a JSON object; the message names the line.
    """
    records = []
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: not JSON ({error.msg}).") from None
            if not isinstance(record, dict):
                raise ValueError(f"{path}, line {number}: expected a JSON object.")
            records.append(record)
    return records


def write(path: str | Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write records as JSON Lines; the file appears whole, or not at all."""
    target = Path(path)
    work = target.with_name(f".{target.name}.part")
    with open(work, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    work.replace(target)


def _ids(record: Mapping[str, Any], field: str, tokenizer: Any) -> list[int]:
    if (given := record.get(f"{field}_token_ids")) is not None:
        return list(given)
    if field not in record:
        raise ValueError(f"a record has no {field!r}; it has {sorted(record)}.")
    value = record[field]
    if field == "prompt":
        if not isinstance(value, str):
            value = tokenizer.apply_chat_template(value, tokenize=False, add_generation_prompt=True)
        return list(tokenizer(value, add_special_tokens=False).input_ids)
    text = value if isinstance(value, str) else "".join(part["content"] for part in value)
    return [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]


def cut(completion: list[int], eos: int | None) -> list[int]:
    """A completion up to and with its first EOS; what follows is not the model's answer."""
    return completion[: completion.index(eos) + 1] if eos in completion else completion


def rollouts(records: Iterable[Mapping[str, Any]], tokenizer: Any) -> list[Rollout]:
    """Records with a label as token ids, cut after the first EOS."""
    eos = tokenizer.eos_token_id
    return [
        Rollout(
            _ids(record, "prompt", tokenizer),
            cut(_ids(record, "completion", tokenizer), eos),
            float(record["label"]),
        )
        for record in records
    ]


def pairs(records: Iterable[Mapping[str, Any]], tokenizer: Any) -> list[Pair]:
    """Preference records as token ids, cut after the first EOS."""
    eos = tokenizer.eos_token_id
    return [
        Pair(
            _ids(record, "prompt", tokenizer),
            cut(_ids(record, "chosen", tokenizer), eos),
            cut(_ids(record, "rejected", tokenizer), eos),
        )
        for record in records
    ]


def preferences(
    records: Iterable[Record], n: int, seed: int, sharpness: float = math.inf
) -> list[Record]:
    """At most n preference records: unequally labelled rollouts of one prompt, drawn at random.

    The better of two is preferred with the probability σ(sharpness · (R_better − R_worse)), the
    judge that Bradley-Terry assumes. A reward model then learns sharpness · R; from a judge that
    never errs (the default) it learns an order on no scale.
    """
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        groups[json.dumps(record["prompt"])].append(record)
    unequal = [
        (better, worse)
        for group in groups.values()
        for better in group
        for worse in group
        if better["label"] > worse["label"]
    ]
    draw = random.Random(seed)
    made = []
    for better, worse in draw.sample(unequal, min(n, len(unequal))):
        odds = math.exp(-sharpness * (better["label"] - worse["label"]))
        chosen, rejected = (better, worse) if draw.random() * (1 + odds) < 1 else (worse, better)
        made.append(
            {
                "prompt": better["prompt"],
                "prompt_token_ids": better["prompt_token_ids"],
                **{
                    f"{side}{suffix}": record[f"completion{suffix}"]
                    for side, record in (("chosen", chosen), ("rejected", rejected))
                    for suffix in ("", "_token_ids")
                },
            }
        )
    return made
