"""The time by which a call into a scorer must have ended, for networks that look at the clock."""

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
    """Let `check` raise once time.monotonic() is past `until`; of this thread alone."""
    token = _UNTIL.set(until)
    try:
        yield
    finally:
        _UNTIL.reset(token)


def check() -> None:
    """Raise OutOfTime if the time is over; without a deadline it never is."""
    if time.monotonic() > _UNTIL.get():
        raise OutOfTime("the time is over")
