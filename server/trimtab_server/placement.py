"""Where a body must not hold guidance: in places that no route reads, where it would be dropped."""

from collections.abc import Mapping
from typing import Any

from trimtab.errors import InvalidGuidance
from trimtab.xargs import PREFIX

ENVELOPES = ("extra_body", "sampling_params", "vllm_xargs", "extra_args", "options", "model_kwargs")
"""Objects that clients wrap fields in. Some send what their own library should have unwrapped."""


def refuse_wrapped(fields: Mapping[str, Any]) -> None:
    """Refuse a `guidance` object inside another one.

    Raises:
        InvalidGuidance: naming the object.
    """
    for name in ENVELOPES:
        inner = fields.get(name)
        if isinstance(inner, dict) and inner.get("guidance") is not None:
            raise InvalidGuidance(
                f"guidance is inside {name}, where no route reads it; send it as a field of the "
                "body itself.",
                param=name,
            )


def flat(fields: Mapping[str, Any]) -> bool:
    """Whether a body has `trimtab_*` keys, at its top or in one of the objects above."""
    inner = [fields.get(name) for name in ENVELOPES]
    places = [fields, *(one for one in inner if isinstance(one, dict))]
    return any(key.startswith(PREFIX) for place in places for key in place)
