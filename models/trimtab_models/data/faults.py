"""Rows that cannot be used: one error names them by file and line; none is skipped silently.

Rows that are left out on purpose are counted, and the counts are logged with the reasons.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

from tqdm import tqdm

log = logging.getLogger(__name__)
Record = dict[str, Any]
Item = TypeVar("Item")
LISTED = 5
"""Broken rows that an error lists; it counts the others."""


class Fault(ValueError):
    """The reason why a row cannot be used, without its place."""


class Left(Exception):
    """The reason why a valid row without information is left out."""


class BrokenRows(ValueError):
    """Rows that cannot be used, and their places."""


class DataRow(NamedTuple):
    """A record, its place ("file, line 3"), and the fault if it could not be read."""

    place: str
    record: Record
    fault: str = ""


def numbered(records: Iterable[Record]) -> Iterable[DataRow]:
    """Records in memory as rows with the places "record 0", "record 1", ..."""
    return (DataRow(f"record {i}", record) for i, record in enumerate(records))


def noting(rows: Iterable[DataRow], places: list[str]) -> Iterable[DataRow]:
    """The same rows; the place of each is appended to `places`."""
    for row in rows:
        places.append(row.place)
        yield row


def convert(rows: Iterable[DataRow], reader: Callable[[Record], Item], what: str) -> list[Item]:
    """Convert every row with a reader, except the rows that the reader leaves out.

    Args:
        rows: the rows.
        reader: raises a `Fault` for a record it cannot use, and `Left` for one to leave out.
        what: title of the progress bar.

    Raises:
        BrokenRows: some rows cannot be used; lists the first `LISTED` and counts the others.
    """
    items: list[Item] = []
    broken: list[str] = []
    left: Counter[str] = Counter()
    for place, record, fault in tqdm(rows, desc=what, unit="row", delay=2):
        try:
            if fault:
                raise Fault(fault)
            items.append(reader(record))
        except Fault as error:
            broken.append(f"{place}: {error}")
        except Left as error:
            left[str(error)] += 1
    count = len(items) + len(broken) + left.total()
    for why, n in left.items():
        log.warning("%d of %d rows are left out: %s.", n, count, why)
    if broken:
        more = f"; and {len(broken) - LISTED} more" if len(broken) > LISTED else ""
        raise BrokenRows(
            f"{len(broken)} of {count} rows cannot be used: "
            f"{'; '.join(broken[:LISTED])}{more}. Fix or remove them."
        )
    return items


def word(text: object, longest: int = 60) -> str:
    """A value shortened to one line, for messages that must not repeat a whole row."""
    line = " ".join(str(text).split())
    return line if len(line) <= longest else line[: longest - 1] + "…"


def json_type(value: object) -> str:
    """The JSON type of a value, for messages."""
    for types, name in (
        (str, "text"),
        (bool, "true or false"),
        ((int, float), "a number"),
        (list, "a list"),
        (dict, "an object"),
    ):
        if isinstance(value, types):
            return name
    return "null" if value is None else f"a {type(value).__name__}"


def field(record: Record, name: str) -> Any:
    """A record's field.

    Raises:
        Fault: there is no such field; the message names the fields there are.
    """
    if name not in record:
        names = ", ".join(word(key, 30) for key in sorted(record)[:8]) or "none"
        raise Fault(f"there is no field {name!r} (it has: {names})")
    return record[name]
