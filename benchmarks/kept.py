"""Results that an interrupted benchmark need not measure again, and what to say of repeats."""

import json
import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats


class Kept:
    """Results by label, in a JSON file that is written after each of them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def __call__(self, label: str, measure: Callable[[], Any]) -> Any:
        """The known result with this label, or else a new one."""
        if label not in self.known:
            self.known[label] = measure()
            part = self.path.with_suffix(".part")
            part.write_text(json.dumps(self.known, indent=1) + "\n")
            part.replace(self.path)
        return self.known[label]


def machine() -> dict[str, Any]:
    """Where a CPU benchmark ran, for its record."""
    return {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, no GPU",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def interval(values: Sequence[float]) -> list[float]:
    """Mean, and the ends of its 95 % interval by Student's t."""
    mean = float(np.mean(values))
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return [mean, mean - half, mean + half]
