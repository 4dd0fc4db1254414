"""Strict JSON, for request bodies and upstream answers.

Python's reader takes linear time but is lenient. This one also refuses NaN and Infinity, numbers
beyond a float, duplicate keys, lone surrogates and deep nesting.
"""

import json
import math
from typing import Any, NoReturn

from starlette.requests import Request
from starlette.types import Scope

from trimtab.errors import InvalidRequest
from trimtab_server.errors import UnsupportedMediaType

MAX_DEPTH = 64
MAX_DIGITS = 300
PARSED = "trimtab.parsed"
"""Scope entry of a request's parsed body (sizes.py)."""


def check_declared(scope: Scope) -> None:
    """Refuse a body that is not declared as JSON.

    Raises:
        UnsupportedMediaType: the content type is not JSON.
    """
    kind = _declared(scope)
    if kind != "application/json" and not kind.endswith("+json"):
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
    value = read(body)
    if not isinstance(value, dict):
        raise InvalidRequest('the body must be a JSON object, such as {"prompt": "Once"}.')
    return value


def read(body: bytes) -> Any:
    """Read a JSON value.

    Raises:
        InvalidRequest: it is not strict JSON of that kind.
    """
    try:
        value = json.loads(
            body.decode("utf-8"),
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_float=_float,
            parse_int=_integer,
        )
        _check_depth(value)
        if b"\\u" in body:
            # An escape may be half of a surrogate pair, which is not text.
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeError:
        raise InvalidRequest(
            "the body is not valid UTF-8 text; send JSON encoded as UTF-8, without lone surrogates."
        ) from None
    except json.JSONDecodeError as error:
        raise InvalidRequest(
            f"the body is not valid JSON ({error.msg.lower()}, line {error.lineno}, "
            f"column {error.colno})."
        ) from None
    except RecursionError:
        raise _too_deep() from None
    return value


def _check_depth(value: Any) -> None:
    level: list[Any] = [[value]]
    for _ in range(MAX_DEPTH + 1):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise _too_deep()


def _too_deep() -> InvalidRequest:
    return InvalidRequest(f"the body is nested more than {MAX_DEPTH} levels deep.")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise InvalidRequest("an object in the body has the same key twice; send each key once.")
    return value


def _constant(_: str) -> NoReturn:
    raise InvalidRequest("NaN and Infinity are not JSON; send finite numbers.")


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise InvalidRequest(f"an integer in the body has more than {MAX_DIGITS} digits.")
    return int(digits)


def _float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise InvalidRequest("a number in the body is beyond what a 64-bit float can hold.")
    return value
