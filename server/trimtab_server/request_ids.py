"""Request ids of clients: visible ASCII, because they appear in headers and logs."""

import re
from collections.abc import Mapping
from typing import Any

from starlette.types import Scope

from trimtab.errors import InvalidRequest

PLAIN = re.compile(r"[!-~]{1,128}")


def check_ids(scope: Scope, fields: Mapping[str, Any]) -> None:
    """Refuse an id that is empty, too long, or not visible ASCII.

    Raises:
        InvalidRequest: naming the header or field.
    """
    headers = [value for name, value in scope["headers"] if name == b"x-request-id"]
    ids = [("X-Request-Id", value.decode("latin-1")) for value in headers]
    ids.append(("request_id", fields.get("request_id")))
    for name, value in ids:
        if isinstance(value, str) and not PLAIN.fullmatch(value):
            raise InvalidRequest(
                f"{name} must be 1 to 128 visible ASCII characters, without spaces.",
                param=name if name in fields else None,
            )
