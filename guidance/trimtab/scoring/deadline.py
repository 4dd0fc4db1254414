"""The deadline of a call into a scorer, for networks that check the clock."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from trimtab.errors import TrimtabError

_UNTIL: ContextVar[float] = ContextVar("trimtab_until", default=math.inf)


class OutOfTime(TrimtabError):
    """A call into a scorer took longer than its budget."""


@contextmanager
def by(until: float) -> Iterator[None]:
    """Make `check` raise once time.monotonic() is past `until`, in this thread only."""
    token = _UNTIL.set(until)
    try:
        yield
    finally:
        _UNTIL.reset(token)


def check() -> None:
    """Raise OutOfTime if the deadline has passed; never without a deadline."""
    if time.monotonic() > _UNTIL.get():
        raise OutOfTime("the time is over")
