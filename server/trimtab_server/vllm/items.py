"""The entries of `input` on /v1/responses, looked at one by one.

vLLM's validation tries each entry as some thirty kinds of things, and tells of every kind why it is
none: a list of wrong ones would hold the server for milliseconds each. Here the first ends it.
"""

from collections.abc import Mapping
from typing import Any

from vllm.entrypoints.openai.responses.protocol import ResponsesRequest

from trimtab.errors import InvalidRequest

FEW = 16
"""Entries that may all be wrong, at no cost to speak of."""


def check_items(fields: Mapping[str, Any]) -> None:
    """Refuse a list in which an entry is wrong.

    Raises:
        InvalidRequest: saying which.
    """
    items = fields.get("input")
    if not isinstance(items, list) or len(items) <= FEW:
        return
    for number, item in enumerate(items):
        try:
            ResponsesRequest.model_validate({"input": [item]})
        except Exception:  # validators raise what they like
            message = f"entry {number} of input is nothing that this route takes."
            raise InvalidRequest(message, param="input") from None
