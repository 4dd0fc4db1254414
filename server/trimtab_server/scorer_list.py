"""The body of GET /v1/scorers."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

NOT_CHECKED = "has not been checked yet"
UNLISTED = ("name", "meters")
"""Fields of a status that are listed as `id`, and in `/metrics`."""
SUSPENDED = "is suspended: it took too long several times within an hour"


def scorer_list(
    statuses: Iterable[Mapping[str, Any]],
    complaint: Callable[[str], str | None],
    default: Mapping[str, float],
) -> dict[str, Any]:
    """The answer of GET /v1/scorers, from the scorers' statuses."""
    return {
        "object": "list",
        "data": [
            {
                "id": status["name"],
                "object": "scorer",
                **{key: value for key, value in status.items() if key not in UNLISTED},
                "healthy": complaint(status["name"]) is None and not status["suspended"],
                "default_weight": default.get(status["name"], 0.0),
            }
            for status in statuses
        ],
    }
