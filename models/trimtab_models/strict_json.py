"""Strict JSON: for request bodies, an upstream's answers and training data.

Python's reader takes linear time but is lenient. This one also refuses duplicate keys, NaN,
Infinity, numbers beyond a float, lone surrogates and deep nesting. pydantic-core's reader is no
substitute: it drops duplicate keys, and reads 1e999 as infinity.
"""

import json
import math
from collections import Counter
from typing import Any

MAX_DEPTH = 64
MAX_DIGITS = 300
_NESTED = (dict, list)


class NotStrict(ValueError):
    """JSON that is not strict. `why` does not contain the input; the message may quote it."""

    def __init__(self, why: str, part: str = "") -> None:
        super().__init__(f"{why} {part[:30]!r}" if part else why)
        self.why = why


def read(text: str | bytes) -> Any:
    """Read a JSON value.

    Raises:
        json.JSONDecodeError: it is not JSON.
        NotStrict: it is not strict JSON.
    """
    try:
        text = text.decode() if isinstance(text, bytes) else text
        value = json.loads(
            text,
            object_pairs_hook=unique,
            parse_constant=_float,
            parse_float=_float,
            parse_int=_integer,
        )
        _check_depth([value], 0)
        if "\\u" in text:
            # An escape may be half of a surrogate pair, which is not text.
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError:
        raise NotStrict("not UTF-8") from None
    except UnicodeEncodeError:
        raise NotStrict("text with lone surrogates (half a surrogate pair)") from None
    except RecursionError:
        raise _too_deep() from None
    return value


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, for the reader's `object_pairs_hook`.

    Raises:
        NotStrict: a key stands twice.
    """
    fields = dict(pairs)
    if len(fields) < len(pairs):
        (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise NotStrict("duplicate key", twice)
    return fields


def _check_depth(value: dict[str, Any] | list[Any], depth: int) -> None:
    if depth > MAX_DEPTH:
        raise _too_deep()
    for inner in value.values() if isinstance(value, dict) else value:
        if type(inner) in _NESTED:
            _check_depth(inner, depth + 1)


def _too_deep() -> NotStrict:
    return NotStrict(f"nested more than {MAX_DEPTH} levels deep")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise NotStrict("a number that is not a finite 64-bit float", text)
    return value


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise NotStrict(f"an integer with more than {MAX_DIGITS} digits", digits)
    return int(digits)
