"""Scorers that fail in the middle of a text, for the fault tests (family=function)."""

FAILS_AT = 20
"""Sequences this long make them fail; the canary's are shorter."""


def raises(ids: list[int]) -> float:
    if len(ids) >= FAILS_AT:
        raise RuntimeError("planted, with a secret: /etc/passwd")
    return 0.0


def nan(ids: list[int]) -> float:
    return float("nan") if len(ids) >= FAILS_AT else 0.0


def infinite(ids: list[int]) -> float:
    return float("inf") if len(ids) >= FAILS_AT else 0.0
