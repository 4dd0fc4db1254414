"""How a function's time grows with the length of what it is given."""

import gc
import math
import time
from collections.abc import Callable

LINEAR = 1.5
"""An exponent below which growth counts as linear: a quadratic loop has 2, and clocks are noisy."""
TICK = 2e-4
"""Seconds below which a time says nothing."""


def exponent(work: Callable[[int], None], small: int, factor: int = 16) -> float:
    """The e of time ~ lengthᵉ, from `small` to `factor` times that; the least of several tries."""
    return min(_exponent(work, small, factor) for _ in range(5))


def _exponent(work: Callable[[int], None], small: int, factor: int) -> float:
    before, after = _seconds(work, small), _seconds(work, small * factor)
    return math.log(max(after, TICK) / max(before, TICK)) / math.log(factor)


def _seconds(work: Callable[[int], None], size: int) -> float:
    gc.disable()  # its passes are over all objects of the test process
    try:
        began = time.perf_counter()
        work(size)
        return time.perf_counter() - began
    finally:
        gc.enable()
