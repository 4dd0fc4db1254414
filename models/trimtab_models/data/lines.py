"""Lines of text files and JSON Lines files.

Blank lines, byte-order marks and carriage returns are ignored. Ambiguous content is a fault of its
line: bytes that are not UTF-8, or JSON that is not strict.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from trimtab_models import strict_json
from trimtab_models.data.faults import DataRow, Fault, Record

ARRAY = "a JSON array; expected JSON Lines, one object a line (convert with: jq -c '.[]' FILE)"


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
        record = strict_json.read(text)
    except json.JSONDecodeError as error:
        raise Fault(f"not JSON ({error.msg}, column {error.colno})") from None
    except strict_json.NotStrict as error:
        raise Fault(str(error)) from None
    if not isinstance(record, dict):
        raise Fault("not a JSON object")
    return record
