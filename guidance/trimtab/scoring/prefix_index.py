"""An index of cached prefixes: which of them begins as a new prefix does.

A prefix has marks after 1, 2, 4, 8, 16 and 32 tokens, and then after every 32 tokens. A mark is a
hash of all tokens before it, so prefixes with a common start have common marks:

    mark_i = hash(mark_{i−1}, tokens between the ends of mark i−1 and mark i)

A lookup follows the marks of the new prefix as long as some cached prefix has them. It costs at
most one hash for each mark, however many prefixes are cached. Of several prefixes with the same
last mark it returns the latest; another one may share more tokens, but fewer than up to the next
mark.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]

BLOCK = 32
"""Tokens between two marks of a long prefix."""
SHORT = 5
"""Marks before the first BLOCK tokens; the distances double up to it."""


class PrefixIndex:
    """Keys of cached prefixes, by their marks."""

    def __init__(self) -> None:
        self._keys: dict[int, dict[int, None]] = {}  # mark → keys of the prefixes that have it
        self._marks: dict[int, list[int]] = {}  # key → marks of its prefix

    def put(self, key: int, tokens: Ids) -> None:
        """Enter a prefix, which begins with what is entered for `key` already."""
        marks = self._marks.setdefault(key, [])
        for mark in _marks(tokens, marks):
            marks.append(mark)
            self._keys.setdefault(mark, {})[key] = None

    def cut(self, key: int, length: int) -> None:
        """Keep only the first `length` tokens of the prefix of `key`; 0 removes it."""
        marks = self._marks.get(key, [])
        while marks and end(len(marks) - 1) > length:
            mark = marks.pop()
            keys = self._keys[mark]
            del keys[key]
            if not keys:
                del self._keys[mark]
        if not length:
            self._marks.pop(key, None)

    def nearest(self, tokens: Ids) -> int | None:
        """The key of a prefix that shares most marks with `tokens`; None if none shares any."""
        nearest = None
        for mark in _marks(tokens, []):
            keys = self._keys.get(mark)
            if keys is None:
                break
            nearest = next(reversed(keys))
        return nearest


def end(i: int) -> int:
    """Number of tokens before mark i: 1, 2, 4, 8, 16, 32, 64, 96, …"""
    return 1 << i if i < SHORT else BLOCK * (i - SHORT + 1)


def _marks(tokens: Ids, known: list[int]) -> Iterator[int]:
    """The marks of a prefix after those that are known."""
    i = len(known)
    mark, start = (known[-1], end(i - 1)) if i else (0, 0)
    while (stop := end(i)) <= len(tokens):
        mark = hash((mark, tokens[start:stop].tobytes()))
        yield mark
        i, start = i + 1, stop
