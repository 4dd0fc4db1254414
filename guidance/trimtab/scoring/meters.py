"""What a guide counts for whoever operates it: seconds of scorer calls, and use of prefix pools.

Plain numbers on the host: nothing here waits for a device. They leave the engine's process with the
status of the scorers (description.py), and add up over engines.
"""

import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from trimtab.rows import Row
from trimtab.scoring.pool import PrefixPool

BUCKETS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 10.0),
)
"""Upper bounds of a histogram of seconds; one more bucket has the rest."""
POOL = ("slots", "used", "ended", "cut", "overflow")
"""Numbers of a prefix pool, see `pool`."""


class Seconds:
    """A histogram of durations."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count one duration, in the first bucket whose bound it does not exceed."""
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.sum += seconds


class Timings:
    """Host time of the calls into each scorer.

    On a GPU, a call ends when its kernels are queued, so their time on the device is not in it.
    """

    def __init__(self) -> None:
        self.of: defaultdict[str, Seconds] = defaultdict(Seconds)

    @contextmanager
    def call(self, names: Sequence[str], rows: Sequence[Row]) -> Iterator[None]:
        """Time one call for some rows, of one scorer, or in equal parts of several that stack.

        Each request notes the whole time, since it waits for the whole batch. Its rows after draft
        tokens share its notes.
        """
        begun = time.perf_counter()
        try:
            yield
        finally:
            seconds = (time.perf_counter() - begun) / len(names)
            notes = {id(row.seconds): row.seconds for row in rows}.values()
            for name in names:
                self.of[name].observe(seconds)
                for own in notes:
                    own[name] = own.get(name, 0.0) + seconds


def pool(pools: Iterable[PrefixPool]) -> dict[str, int]:
    """Sums over the prefix pools of a scorer; zeros if it has none.

    slots: tokens that fit. used: tokens that are cached. ended: tokens dropped of requests that
    have ended. cut: tokens dropped of running requests, which are read again. overflow: tokens
    without a slot, which are read again in each step. The last three only grow.
    """
    sums = dict.fromkeys(POOL, 0)
    for one in pools:
        used = one.size - 1 - one.free_slots  # slot 0 is padding
        for key, value in zip(
            POOL, (one.size - 1, used, one.ended, one.cut, one.overflow), strict=True
        ):
            sums[key] += value
    return sums


def merged(meters: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The sum of the meters of several engines, see description.describe."""
    return {
        "pool": {key: sum(one["pool"][key] for one in meters) for key in POOL},
        "seconds": {
            "counts": [
                sum(n) for n in zip(*(one["seconds"]["counts"] for one in meters), strict=True)
            ],
            "sum": sum(one["seconds"]["sum"] for one in meters),
        },
    }
