"""Derived sets: pairs and rankings of rollouts, training and validation parts."""

import hashlib
import json
import logging
import math
import random
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

from trimtab_models.data.faults import Item, Record, convert, field, numbered
from trimtab_models.data.fields import PROMPT, SIDES, of_prompt
from trimtab_models.data.formats import total

log = logging.getLogger(__name__)


def preferences(
    records: Iterable[Record], n: int, seed: int, sharpness: float = math.inf
) -> list[Record]:
    """A random sample of up to n preferences between unequally rewarded rollouts of one prompt.

    The better of two is preferred with the probability σ(sharpness · (R_better − R_worse)), the
    judge of the Bradley-Terry model. A reward model then learns sharpness · R; from a judge without
    errors (the default) it learns an order without a scale.

    Raises:
        ValueError: records have no prompt or reward; they are named by number.
    """
    groups = _by_prompt(records)
    unequal = [
        (high - low, better, worse)
        for group in groups
        for high, better in group
        for low, worse in group
        if high > low
    ]
    pairs = sum(len(group) * (len(group) - 1) // 2 for group in groups)
    if ties := pairs - len(unequal):
        log.warning("of %d pairs of rollouts %d have equal rewards and are left out.", pairs, ties)
    rng = random.Random(seed)
    made = []
    for margin, better, worse in rng.sample(unequal, min(n, len(unequal))):
        odds = math.exp(-sharpness * margin)
        chosen, rejected = (better, worse) if rng.random() * (1 + odds) < 1 else (worse, better)
        record = _begun(better, worse)
        for side, rollout in (("chosen", chosen), ("rejected", rejected)):
            for suffix in ("", "_token_ids"):
                if f"completion{suffix}" in rollout:
                    record[f"{side}{suffix}"] = rollout[f"completion{suffix}"]
        made.append(record)
    return made


def rankings(records: Iterable[Record], k: int, seed: int) -> list[Record]:
    """As many rankings as possible of k rollouts of one prompt, by falling reward.

    The rewards of a ranking are all different, and each rollout is in one ranking only. Unused
    rollouts (mostly ties) are chosen at random.

    Raises:
        ValueError: k is below 2, or no prompt has k rollouts of different rewards.
    """
    if k < 2:
        raise ValueError(f"a ranking needs two completions or more, not {k}.")
    rng = random.Random(seed)
    made = []
    groups = _by_prompt(records)
    for group in groups:
        ties: dict[float, list[Record]] = defaultdict(list)
        for value, rollout in rng.sample(group, len(group)):
            ties[value].append(rollout)
        # Taking from the largest ties first makes the most rankings possible.
        while len(ties) >= k:
            values = rng.sample(sorted(ties), len(ties))
            values = sorted(sorted(values, key=lambda value: -len(ties[value]))[:k], reverse=True)
            made.append(_ranking([ties[value].pop() for value in values]))
            ties = {value: tied for value, tied in ties.items() if tied}
    if not made:
        raise ValueError(
            f"no prompt has {k} rollouts of different rewards; sample more rollouts of each prompt."
        )
    if unused := sum(map(len, groups)) - k * len(made):
        log.warning(
            "%d rankings of %d rollouts; %d rollouts are left out (ties or surplus).",
            len(made),
            k,
            unused,
        )
    return rng.sample(made, len(made))


def _begun(*rollouts: Record) -> Record:
    """The common record of several rollouts of one prompt, without their completions."""
    return {name: value for name, value in of_prompt(*rollouts).items() if name not in SIDES}


def _ranking(rollouts: Sequence[Record]) -> Record:
    record = _begun(*rollouts)
    for suffix in ("", "_token_ids"):
        if all(f"completion{suffix}" in rollout for rollout in rollouts):
            record[f"completions{suffix}"] = [r[f"completion{suffix}"] for r in rollouts]
    return record


def split(items: Sequence[Item], fraction: float, seed: int) -> tuple[list[Item], list[Item]]:
    """Split items (or records) into a training and a validation part that share no prompt.

    The validation prompts depend on the set of prompts and the seed, not on the items' order.

    Args:
        items: items of `load`, or records with a "prompt".
        fraction: share of the prompts for validation; each part gets at least one prompt.
        seed: selects the prompts.

    Raises:
        ValueError: fraction is not between 0 and 1, or there are fewer than two prompts.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"the fraction for validation is {fraction}; expected between 0 and 1.")
    keys = [_key(item) for item in items]
    prompts = sorted(set(keys), key=lambda key: hashlib.sha256(f"{seed} {key!r}".encode()).digest())
    if len(prompts) < 2:
        raise ValueError(f"a validation part needs two prompts; there are {len(prompts)}.")
    validation = set(prompts[: min(max(round(fraction * len(prompts)), 1), len(prompts) - 1)])
    parts: tuple[list[Item], list[Item]] = ([], [])
    for item, key in zip(items, keys, strict=True):
        parts[key in validation].append(item)
    return parts


def _key(item: Any) -> Hashable:
    if not isinstance(item, dict):
        return tuple(item.prompt)
    if "prompt" not in item:
        raise ValueError("a record has no 'prompt' to split by; split the loaded items instead.")
    return json.dumps(item["prompt"], sort_keys=True)


def _by_prompt(records: Iterable[Record]) -> list[list[tuple[float, Record]]]:
    """Rollouts with their rewards, grouped by prompt."""

    def keyed(record: Record) -> tuple[Hashable, float, Record]:
        field(record, "prompt")
        key = json.dumps([record.get(name) for name in PROMPT], sort_keys=True)
        return key, total(record), record

    groups: dict[Hashable, list[tuple[float, Record]]] = defaultdict(list)
    for key, value, record in convert(numbered(records), keyed, "grouping by prompt"):
        groups[key].append((value, record))
    return list(groups.values())
