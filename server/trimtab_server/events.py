"""Server-sent events."""

import json
from collections.abc import Mapping
from typing import Any

DONE = "data: [DONE]\n\n"


def event(data: Mapping[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"
