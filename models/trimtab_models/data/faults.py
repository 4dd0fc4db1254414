"""Rows that cannot be used: named by file and line, several in one error, none passed over.

Rows that are left out on purpose are counted, and the counts are logged once, with the reasons.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

from tqdm import tqdm

log = logging.getLogger(__name__)
Record = dict[str, Any]
Item = TypeVar("Item")
SHOWN = 5
"""How many broken rows an error describes; of the others it says how many there are."""


class Fault(ValueError):
    """What is wrong with one row, without saying where."""


class Left(Exception):
    """A row that is as it should be and yet says nothing, and why: it is left out."""


class BrokenRows(ValueError):
    """Rows that cannot be used, and where they are."""


class DataRow(NamedTuple):
    """A record, where it came from ("file, line 3"), and what kept it from being read, if so."""

    place: str
    record: Record
    fault: str = ""


def numbered(records: Iterable[Record]) -> Iterable[DataRow]:
    """Rows of records in memory: "record 0" and so on."""
    return (DataRow(f"record {i}", record) for i, record in enumerate(records))


def noting(rows: Iterable[DataRow], places: list[str]) -> Iterable[DataRow]:
    """The same rows, the place of each put into a list as it passes."""
    for row in rows:
        places.append(row.place)
        yield row


def convert(rows: Iterable[DataRow], reader: Callable[[Record], Item], what: str) -> list[Item]:
    """Every row through a reader, but for those that it leaves out.

    Args:
        rows: what to read.
        reader: raises a `Fault` for a record it cannot use, and `Left` for one to leave out.
        what: shown with the progress.

    Raises:
        BrokenRows: some rows cannot be used; names the first `SHOWN` and counts the others.
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
        more = f"; and {len(broken) - SHOWN} more" if len(broken) > SHOWN else ""
        raise BrokenRows(
            f"{len(broken)} of {count} rows cannot be used: "
            f"{'; '.join(broken[:SHOWN])}{more}. Mend them, or take them out."
        )
    return items


def word(text: object, longest: int = 60) -> str:
    """Something in few characters and on one line, for a message that must not repeat a row."""
    line = " ".join(str(text).split())
    return line if len(line) <= longest else line[: longest - 1] + "…"


def kind(value: object) -> str:
    """What JSON calls a value."""
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
        Fault: it has none; names what it has.
    """
    if name not in record:
        there = ", ".join(word(key, 30) for key in sorted(record)[:8]) or "none"
        raise Fault(f"there is no field {name!r} (it has: {there})")
    return record[name]
