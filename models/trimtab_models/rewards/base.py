"""What a reward reads of a rollout, and the error of one that fails."""

from collections.abc import Mapping
from typing import Any

from trimtab_models.data.chats import messages
from trimtab_models.data.faults import Fault

Record = Mapping[str, Any]
"""A rollout, with a "prompt" and a "completion" at least."""


class RewardError(ValueError):
    """A reward cannot be loaded, or gave no usable number."""


def texts(record: Record) -> tuple[str, str]:
    """(prompt, completion) as plain text: of messages, the last one of the user; else as it is."""
    prompt, completion = record["prompt"], record["completion"]
    if not isinstance(prompt, str):
        said = [content for role, content in spoken(record, "prompt") if role == "user"]
        prompt = said[-1] if said else ""
    if not isinstance(completion, str):
        completion = "".join(content for _, content in spoken(record, "completion"))
    return prompt, completion


def spoken(record: Record, name: str) -> list[tuple[str, str]]:
    """(role, text) of a field's messages; a call of a tool says nothing.

    Raises:
        RewardError: they are no messages of text.
    """
    try:
        return [
            (message["role"], message.get("content") or "")
            for message in messages(dict(record), name)
        ]
    except Fault as fault:
        raise RewardError(f"{fault}.") from None
