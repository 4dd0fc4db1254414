"""Rows that are too long: cut by one rule, counted, and said.

Of max_length tokens the completion comes first, for it is what is scored: a prompt is cut on the
left, where its oldest words are, but never below half of max_length. Only what still does not fit
is cut off the completion's right end, its EOS with it. Its label stays, the return of the whole,
and so does the strength it was guided with; the log-ratios of the cut tokens become one sum.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeVar

from trimtab_models.rows import Pair, Ranked, Rollout

Item = TypeVar("Item", Rollout, Pair, Ranked)
log = logging.getLogger(__name__)


def shorten(items: Sequence[Item], max_length: int) -> list[Item]:
    """Items whose every row of prompt + completion has at most max_length tokens.

    The completions of one item keep one prompt, cut for the longest of them. A pair or a ranking of
    which two completions are the same once cut says nothing any more and is left out. How many
    were cut or left out is logged as a warning.

    Raises:
        ValueError: max_length is below 2, or nothing is left.
    """
    if max_length < 2:
        raise ValueError(f"max_length is {max_length}; a prompt and a completion need 2 tokens.")
    kept: list[Item] = []
    did: Counter[str] = Counter()
    for item in items:
        sides = _sides(item)
        longest = max(map(len, sides))
        prompt = item.prompt[-max(max_length // 2, max_length - longest) :]
        room = max_length - len(prompt)
        short = [side[:room] for side in sides]
        did["prompts"] += len(prompt) < len(item.prompt)
        did["completions"] += sum(len(side) > room for side in sides)
        if len({tuple(side) for side in short}) < len({tuple(side) for side in sides}):
            did["out"] += 1
        else:
            kept.append(_with(item, prompt, short))
    if any(did.values()):
        log.warning(
            "max_length %d: of %d items %d prompts are cut on the left, %d completions on the "
            "right; %d items are left out, whose completions no longer differ.",
            max_length,
            len(items),
            did["prompts"],
            did["completions"],
            did["out"],
        )
    if items and not kept:
        raise ValueError(f"nothing is left at max_length {max_length}; choose a larger one.")
    return kept


def length(item: Any) -> int:
    """The tokens of an item's prompt and its longest completion."""
    return len(item.prompt) + max(map(len, _sides(item)))


def _sides(item: Rollout | Pair | Ranked) -> list[list[int]]:
    if isinstance(item, Rollout):
        return [item.completion]
    return [item.chosen, item.rejected] if isinstance(item, Pair) else item.completions


def _with(item: Item, prompt: list[int], sides: list[list[int]]) -> Item:
    if isinstance(item, Rollout):
        kept, lost = item.log_ratios[: len(sides[0])], item.log_ratios[len(sides[0]) :]
        return item._replace(
            prompt=prompt, completion=sides[0], log_ratios=kept, rest=item.rest + sum(lost)
        )
    return Pair(prompt, *sides) if isinstance(item, Pair) else Ranked(prompt, sides)
