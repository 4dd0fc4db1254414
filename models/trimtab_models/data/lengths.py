"""Rows that are too long: cut by one rule, counted and logged.

The completion is scored, so the prompt is cut first: on the left, where its oldest tokens are, but
to no less than half of max_length. Then the completion is cut on the right, with its EOS. It keeps
its label, the return of the whole completion, its guidance strength, and the rewards of the
remaining prefixes and steps; the log-ratios of the cut tokens become one sum. Rewards of cut steps
so arrive at the cut. Measured odds of a longer prefix of a pair become those of what remains: over
answers of the base, their mean is the same.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeVar

from trimtab_models.rows import Pair, Ranked, Rollout

Item = TypeVar("Item", Rollout, Pair, Ranked)
log = logging.getLogger(__name__)


def shorten(items: Sequence[Item], max_length: int) -> list[Item]:
    """The items with every row of prompt + completion cut to max_length tokens.

    The completions of an item keep a common prompt, cut for the longest of them. A pair or ranking
    is left out if two of its completions are equal after the cut. The numbers of cut and left-out
    items are logged as a warning.

    Raises:
        ValueError: max_length is below 2, or no item remains.
    """
    if max_length < 2:
        raise ValueError(f"max_length is {max_length}; a prompt and a completion need 2 tokens.")
    kept: list[Item] = []
    counts: Counter[str] = Counter()
    for item in items:
        sides = _sides(item)
        longest = max(map(len, sides))
        prompt = item.prompt[-max(max_length // 2, max_length - longest) :]
        room = max_length - len(prompt)
        short = [side[:room] for side in sides]
        counts["prompts"] += len(prompt) < len(item.prompt)
        counts["completions"] += sum(len(side) > room for side in sides)
        if len({tuple(side) for side in short}) < len({tuple(side) for side in sides}):
            counts["out"] += 1
        else:
            kept.append(_with(item, prompt, short))
    if any(counts.values()):
        log.warning(
            "max_length %d: of %d items, %d prompts are cut on the left and %d completions on the "
            "right; %d items are left out because their completions no longer differ.",
            max_length,
            len(items),
            counts["prompts"],
            counts["completions"],
            counts["out"],
        )
    if items and not kept:
        raise ValueError(f"no item remains at max_length {max_length}; choose a larger one.")
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
        kept, removed = item.log_ratios[: len(sides[0])], item.log_ratios[len(sides[0]) :]
        return item._replace(
            prompt=prompt,
            completion=sides[0],
            log_ratios=kept,
            rest=item.rest + sum(removed),
            prefix_rewards=item.prefix_rewards[: len(sides[0])],
            step_rewards=item.step_rewards[: len(sides[0])],
        )
    if isinstance(item, Ranked):
        return Ranked(prompt, sides)
    a, b = map(len, sides)
    odds = tuple((min(i, a), min(j, b), p) for i, j, p in item.odds)
    return item._replace(prompt=prompt, chosen=sides[0], rejected=sides[1], odds=odds)
