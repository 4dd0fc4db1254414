"""Scorers as requests and GET /v1/scorers know them."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

NOT_ASKED = "has not been asked yet"
SUSPENDED = "is suspended: it took too long several times within an hour"


def listed(
    found: Iterable[Mapping[str, Any]],
    complaint: Callable[[str], str | None],
    default: Mapping[str, float],
) -> dict[str, Any]:
    """The answer of GET /v1/scorers, of what the guide tells of each scorer."""
    return {
        "object": "list",
        "data": [
            {
                "id": status["name"],
                "object": "scorer",
                **{key: value for key, value in status.items() if key != "name"},
                "healthy": complaint(status["name"]) is None and not status["suspended"],
                "default_weight": default.get(status["name"], 0.0),
            }
            for status in found
        ],
    }
