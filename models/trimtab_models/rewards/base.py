"""The input of a reward, and the error if it fails."""

from collections.abc import Mapping
from typing import Any

from trimtab_models.data.chats import messages
from trimtab_models.data.faults import Fault

Record = Mapping[str, Any]
"""A rollout with at least a "prompt" and a "completion"."""


class RewardError(ValueError):
    """A reward cannot be loaded, or did not return a usable number."""


def texts(record: Record) -> tuple[str, str]:
    """(prompt, completion) as plain text; the prompt of a chat is its last user message."""
    prompt, completion = record["prompt"], record["completion"]
    if not isinstance(prompt, str):
        user = [content for role, content in spoken(record, "prompt") if role == "user"]
        prompt = user[-1] if user else ""
    if not isinstance(completion, str):
        completion = "".join(content for _, content in spoken(record, "completion"))
    return prompt, completion


def spoken(record: Record, name: str) -> list[tuple[str, str]]:
    """(role, text) of a field's messages; tool calls are left out.

    Raises:
        RewardError: they are not text messages.
    """
    try:
        return [
            (message["role"], message.get("content") or "")
            for message in messages(dict(record), name)
        ]
    except Fault as fault:
        raise RewardError(f"{fault}.") from None
