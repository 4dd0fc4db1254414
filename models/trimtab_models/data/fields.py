"""Which fields of a record belong to its prompt, and which to one answer alone.

A record that is made of others takes along what belongs to their prompt. Of their answers it takes
what it names, and nothing by accident: the reward, the strength or the token ids of one answer are
not those of another.
"""

from collections.abc import Sequence

from trimtab_models.data.faults import Record

PROMPT = ("prompt", "prompt_token_ids", "tools", "chat_template_kwargs")
"""What a prompt is rendered from: two records are of one prompt if they agree in all of these."""
SIDES = tuple(
    f"{name}{suffix}"
    for name in ("chosen", "rejected", "completions")
    for suffix in ("", "_token_ids")
)
"""What a preference or a ranking says of its answers."""
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
    "label",
)
"""What a rollout's record says of its answer; all else is the prompt's, or its line's."""


def of_prompt(*records: Record) -> Record:
    """What records of one prompt have in common, without the fields of single answers."""
    return {name: value for name, value in shared(records).items() if name not in ANSWER}


def shared(records: Sequence[Record]) -> Record:
    """The fields that are in all of some records, and the same in all."""
    first, *others = records
    return {
        name: value
        for name, value in first.items()
        if all(name in one and one[name] == value for one in others)
    }
