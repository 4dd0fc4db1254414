"""Request bodies: declared as JSON, and read strictly, once."""

import json
from typing import Any

from starlette.requests import Request
from starlette.types import Scope

from trimtab.errors import InvalidRequest
from trimtab_models import strict_json
from trimtab_server.errors import UnsupportedMediaType

PARSED = "trimtab.parsed"
"""Scope entry of a request's parsed body (sizes.py)."""


def check_declared(scope: Scope) -> None:
    """Refuse a body that is not declared as JSON.

    Raises:
        UnsupportedMediaType: the content type is not JSON.
    """
    if not _declared(scope) or not may_be_json(scope):
        raise UnsupportedMediaType("send the body as JSON, with Content-Type: application/json.")


def may_be_json(scope: Scope) -> bool:
    """Whether a route may read the body as JSON: declared as JSON or undeclared."""
    kind = _declared(scope)
    return kind in ("", "application/json") or kind.endswith("+json")


def _declared(scope: Scope) -> str:
    declared = dict(scope["headers"]).get(b"content-type", b"").decode("latin-1")
    return declared.partition(";")[0].strip().lower()


async def fields(request: Request) -> dict[str, Any]:
    """The request's body. A dependency of routes: it is read before the handler runs."""
    check_declared(request.scope)
    return parsed(request.scope, await request.body())


def parsed(scope: Scope, body: bytes) -> dict[str, Any]:
    """The request's body, parsed now if not before. The caller may change it.

    Raises:
        InvalidRequest: see loads.
    """
    known: dict[str, Any] | None = scope.get(PARSED)
    return loads(body) if known is None else dict(known)


def loads(body: bytes) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InvalidRequest: it is not strict JSON of that kind.
    """
    try:
        value = strict_json.read(body)
    except json.JSONDecodeError as error:
        raise InvalidRequest(
            f"the body is not valid JSON ({error.msg.lower()}, line {error.lineno}, "
            f"column {error.colno})."
        ) from None
    except strict_json.NotStrict as error:
        raise InvalidRequest(
            f"the body is not strict JSON: {error.why}; send JSON in UTF-8, with each key once "
            "and finite numbers."
        ) from None
    if not isinstance(value, dict):
        raise InvalidRequest('the body must be a JSON object, such as {"prompt": "Once"}.')
    return value
