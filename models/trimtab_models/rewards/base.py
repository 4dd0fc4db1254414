"""What a reward reads of a rollout, and the error of one that fails."""

from collections.abc import Mapping
from typing import Any

Record = Mapping[str, Any]
"""A rollout, with a "prompt" and a "completion" at least."""


class RewardError(ValueError):
    """A reward cannot be loaded, or gave no usable number."""


def texts(record: Record) -> tuple[str, str]:
    """(prompt, completion) as plain text: of messages, the last one of the user; else as it is."""
    prompt, completion = record["prompt"], record["completion"]
    if not isinstance(prompt, str):
        said = [str(message["content"]) for message in prompt if message["role"] == "user"]
        prompt = said[-1] if said else ""
    if not isinstance(completion, str):
        completion = "".join(str(message["content"]) for message in completion)
    return prompt, completion
