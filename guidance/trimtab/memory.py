"""Memory of a server on the CPU: what it can take, and bounds so that it does not grow.

Almost every step of guidance has a new shape, and scorers are loaded and unloaded. Without bounds,
oneDNN's kernels for these shapes and the C library's freed blocks grow for hours.
"""

import ctypes
import os
from pathlib import Path

import psutil

KERNELS = 64
"""Kernels kept by oneDNN and by PyTorch's cache in front of it, one per shape. Their default of
1,024 takes over 100 MB."""
ARENA_MAX, MMAP_THRESHOLD = -8, -3
"""glibc's numbers of two malloc parameters (malloc.h)."""
UNLIMITED = 2**63
BLOCK_BYTES = 256 * 2**10
"""Blocks of at least this size return to the system when they are freed."""


def bound() -> None:
    """Set the bounds, for this process and for processes forked from it.

    Variables that the environment already sets stay. The bounds of malloc need glibc.
    """
    for variable in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(variable, str(KERNELS))
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        if "MALLOC_MMAP_THRESHOLD_" not in os.environ:
            library.mallopt(MMAP_THRESHOLD, BLOCK_BYTES)
        if "MALLOC_ARENA_MAX" not in os.environ:
            library.mallopt(ARENA_MAX, 1)


def available(root: Path = Path("/sys/fs/cgroup"), groups: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes that this process can still take: of the machine, and of its control groups.

    root, groups: where Linux says so; elsewhere only the machine counts.
    """
    free = [int(psutil.virtual_memory().available)]
    for line in groups.read_text().splitlines() if groups.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            top = root / controllers
            own = top / path.strip("/")
            free += [_room(group) for group in (own, *own.parents) if group.is_relative_to(top)]
    return max(0, min(free))


def _room(group: Path) -> int:
    """Bytes that a control group has left; its cached files count as free."""
    for limit, usage in (
        ("memory.max", "memory.current"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        try:
            most, used = (group / limit).read_text().strip(), (group / usage).read_text()
            facts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        except OSError:
            continue
        if most.isdecimal():
            return int(most) - int(used) + int(facts.get("inactive_file", 0))
    return UNLIMITED


def give_back() -> None:
    """Return freed memory that the C library keeps to the system; takes milliseconds."""
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
