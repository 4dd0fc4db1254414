"""Memory bounds of a server on the CPU, so that its memory does not grow with its requests.

Almost every step of guidance has a new shape, and scorers are loaded and unloaded. Without bounds,
oneDNN's kernels for these shapes and the C library's freed blocks grow for hours.
"""

import ctypes
import os

KERNELS = 64
"""Kernels kept by oneDNN and by PyTorch's cache in front of it, one per shape. Their default of
1,024 takes over 100 MB."""
ARENA_MAX, MMAP_THRESHOLD = -8, -3
"""glibc's numbers of two malloc parameters (malloc.h)."""
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


def give_back() -> None:
    """Return freed memory that the C library keeps to the system; takes milliseconds."""
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
