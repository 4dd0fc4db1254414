"""Validate the entries of `input` on /v1/responses one by one.

vLLM's validation tries about thirty types per entry and reports an error for each type, so every
invalid entry blocks the server for milliseconds. Here the first invalid entry ends the validation.
"""

from collections.abc import Mapping
from typing import Any

from vllm.entrypoints.openai.responses.protocol import ResponsesRequest

from trimtab.errors import InvalidRequest

FEW = 16
"""Number of entries that may all be invalid at little cost."""


def check_items(fields: Mapping[str, Any]) -> None:
    """Refuse a list with an invalid entry.

    Raises:
        InvalidRequest: with the number of the entry.
    """
    items = fields.get("input")
    if not isinstance(items, list) or len(items) <= FEW:
        return
    for number, item in enumerate(items):
        try:
            ResponsesRequest.model_validate({"input": [item]})
        except Exception:  # validators raise any type
            message = f"entry {number} of input is not a type that this route accepts."
            raise InvalidRequest(message, param="input") from None
