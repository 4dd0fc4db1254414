"""The fields of a record that belong to its prompt, and those that belong to one answer.

A record derived from others keeps the fields of their prompt. It takes only the answer fields that
it names: the reward, the strength or the token ids of one answer are not those of another.
"""

from collections.abc import Sequence

from trimtab_models.data.faults import Record

PROMPT = ("prompt", "prompt_token_ids", "tools", "chat_template_kwargs")
"""Fields that a prompt is rendered from: records share a prompt if all of these are equal."""
SIDES = (
    *(
        f"{name}{suffix}"
        for name in ("chosen", "rejected", "completions")
        for suffix in ("", "_token_ids")
    ),
    *("score_chosen", "score_rejected", "odds", "measured", "generated_tokens"),
)
"""Answer fields of a preference or a ranking."""
ANSWER = (
    "index",
    "sample",
    "completion",
    "completion_token_ids",
    "logprobs",
    "kl",
    "strength",
    "log_ratios",
    "reward",
    "rewards",
    "prefix_rewards",
    "spans",
    "label",
)
"""Answer fields of a rollout; all others belong to the prompt or its line."""


def of_prompt(*records: Record) -> Record:
    """The common fields of records of one prompt, without the fields of single answers."""
    return {name: value for name, value in shared(records).items() if name not in ANSWER}


def rejudged(record: Record) -> Record:
    """The record without the rewards of its answer's beginnings and steps, which another gave.

    An object of "rewards" by their names is not of steps, and stays.
    """
    former = {"prefix_rewards", "spans"}
    if isinstance(record.get("rewards"), list):
        former.add("rewards")
    return {name: value for name, value in record.items() if name not in former}


def shared(records: Sequence[Record]) -> Record:
    """The fields that all records have with the same value."""
    first, *others = records
    return {
        name: value
        for name, value in first.items()
        if all(name in one and one[name] == value for one in others)
    }
