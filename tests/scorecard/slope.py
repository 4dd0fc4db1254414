"""How much memory a request leaves behind."""

from collections.abc import Sequence

import numpy as np
import psutil
from scipy import stats


def growth(points: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """Bytes a request over the second half, and the upper 95 % bound of it.

    points: (requests answered, bytes resident).
    """
    requests, size = np.array(points[len(points) // 2 :]).T
    if np.ptp(size) == 0:  # a fit has no error then
        return 0.0, 0.0
    fit = stats.linregress(requests, size)
    return fit.slope, fit.slope + 1.645 * fit.stderr


def sizes(pid: int) -> dict[str, int]:
    """Bytes resident of a server's processes, by what they are."""
    root = psutil.Process(pid)
    resident = {"API": root.memory_info().rss}
    for child in root.children(recursive=True):
        name = " ".join(child.cmdline())
        kind = "engine" if "EngineCore" in name else f"other {child.pid}"
        resident[kind] = child.memory_info().rss
    return resident
