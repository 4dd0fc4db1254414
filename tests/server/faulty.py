"""Scorers that fail in the middle of a text, for the fault tests (family=function)."""

import time

FAILS_AT = 20
"""Sequences this long make them fail; the canary's are shorter."""
SLEEP_SECONDS = 5.0
"""More than the server's --scorer-timeout."""


def raises(ids: list[int]) -> float:
    if len(ids) >= FAILS_AT:
        raise RuntimeError(f"planted, with a secret: /etc/passwd, {ids}")
    return 0.0


def exits(ids: list[int]) -> float:
    if len(ids) >= FAILS_AT:
        raise SystemExit(7)
    return 0.0


def interrupts(ids: list[int]) -> float:
    if len(ids) >= FAILS_AT:
        raise KeyboardInterrupt
    return 0.0


def exhausts(ids: list[int]) -> float:
    if len(ids) >= FAILS_AT:
        raise MemoryError
    return 0.0


def sleeps(ids: list[int]) -> float:
    if len(ids) >= FAILS_AT:
        time.sleep(SLEEP_SECONDS)
    return 0.0


def loops(ids: list[int]) -> float:
    while len(ids) >= FAILS_AT:
        pass
    return 0.0


def nan(ids: list[int]) -> float:
    return float("nan") if len(ids) >= FAILS_AT else 0.0


def infinite(ids: list[int]) -> float:
    return float("inf") if len(ids) >= FAILS_AT else 0.0
