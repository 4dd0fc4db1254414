"""A scorer that takes its time, for the faults: steps are long, and so are records."""

import time


def sleepy(ids: list[int]) -> float:
    time.sleep(0.1)
    return float(ids[-1] % 3)


def slow(ids: list[int]) -> float:
    time.sleep(0.005)
    return float(ids[-1] % 3)


def slumber(ids: list[int]) -> float:
    """Sleeps at the end of an answer alone, if β is 0: that is when its record is made."""
    time.sleep(3 if len(ids) >= 16 else 0)
    return 0.0
