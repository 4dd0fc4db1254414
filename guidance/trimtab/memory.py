"""The memory of a server on the CPU: as flat after ten thousand requests as after a hundred.

Almost every step of guidance has another shape, and scorers come and go. What oneDNN keeps for each
shape, and what the C library keeps of freed blocks, would grow for hours.
"""

import ctypes
import os

KERNELS = 64
"""Kernels that oneDNN, and PyTorch's cache of its own before it, keep: one a shape. The 1,024 that
they would keep take over 100 MB."""
ARENA_MAX, MMAP_THRESHOLD = -8, -3
"""glibc's numbers of two of its malloc's parameters (malloc.h)."""
BLOCK_BYTES = 256 * 2**10
"""Blocks from this size on go back to the system when they are freed."""


def bound() -> None:
    """Bound what is kept, here and in processes that are forked from here.

    Does nothing that the environment has settled already, nor where the C library is another one.
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
    """Return to the system what the C library keeps of freed memory; milliseconds."""
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
