"""Lines of text files and JSON Lines files.

Blank lines, byte-order marks and carriage returns are ignored. Ambiguous content is a fault of its
line: bytes that are not UTF-8, a duplicate key, a number that JSON does not have (NaN, Infinity,
1e999).
"""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trimtab_models.data.faults import DataRow, Fault, Record, word

BROKEN = "not JSON that can be read"
ARRAY = "a JSON array; expected JSON Lines, one object a line (convert with: jq -c '.[]' FILE)"
_ODD = re.compile(r"NaN|Infinity|\d[eE]\+?\d{3}")
"""Text that may be a number that is not finite."""


def lines(path: str | Path) -> Iterator[tuple[str, str | None]]:
    """A file's lines that are not blank: the place of each, and its text, None if not UTF-8.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode("utf-8-sig").rstrip("\r\n")
            except UnicodeDecodeError:
                yield f"{path}, line {number}", None
            else:
                if text.strip():
                    yield f"{path}, line {number}", text


def json_lines(path: str | Path) -> Iterator[DataRow]:
    """The rows of a JSON Lines file, including those with faults; raises OSError."""
    for number, (place, text) in enumerate(lines(path)):
        if number == 0 and text is not None and text.lstrip().startswith("["):
            yield DataRow(place, {}, ARRAY)
            return
        try:
            yield DataRow(place, _record(text))
        except Fault as fault:
            yield DataRow(place, {}, str(fault))


def _record(text: str | None) -> Record:
    if text is None:
        raise Fault("not UTF-8")
    try:
        record = json.loads(text, object_pairs_hook=_object)
    except Fault:
        raise
    except json.JSONDecodeError as error:
        raise Fault(f"not JSON ({error.msg}, column {error.colno})") from None
    except (ValueError, RecursionError):  # a number of 5,000 digits, a thousand brackets
        raise Fault(BROKEN) from None
    if not isinstance(record, dict):
        raise Fault("not a JSON object")
    if _ODD.search(text):
        _check_numbers(record)
    return record


def _object(pairs: list[tuple[str, Any]]) -> Record:
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise Fault(f"duplicate key {word(twice, 30)!r}")
    return record


def _check_numbers(record: Record) -> None:
    todo = list(record.items())
    for name, value in todo:  # the list grows during the loop
        if isinstance(value, float) and not math.isfinite(value):
            raise Fault(f"{word(name, 30)!r} is {value}; expected a finite number")
        if isinstance(value, list | dict):
            inner = value.values() if isinstance(value, dict) else value
            todo += [(name, one) for one in inner]
