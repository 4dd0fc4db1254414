"""Requests as chats: how a world's prompts are drawn, split and read again."""

import random
import zlib
from collections.abc import Callable, Iterator
from itertools import cycle, islice

from trimtab_models.demo import chat

Draw = Callable[[random.Random], str]
"""A random request, as the user puts it."""

_TRIES = 12  # draws for each prompt asked for: a fifth of all requests is of the split "test"


def stream(request: Draw, split: str, draw: random.Random) -> Iterator[str]:
    """Random requests of a split without end; which split a request is of, its text decides.

    Raises:
        ValueError: the split is neither "train" nor "test".
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', not {split!r}")
    while True:
        text = request(draw)
        if (zlib.crc32(text.encode()) % 5 == 0) == (split == "test"):
            yield text


def prompts(request: Draw, split: str, n: int, seed: int) -> list[str]:
    """n requests of a split as the base reads them, without repeats while there are others."""
    drawn = islice(stream(request, split, random.Random(seed)), _TRIES * n)
    return [chat(text) for text in islice(cycle(dict.fromkeys(drawn)), n)]


def answered(request: str, answer: str) -> str:
    """A request with its answer, as the corpus has it."""
    return f"{chat(request)}{answer}<|end|>"


def request_of(prompt: str) -> str:
    """The last request of a prompt."""
    return prompt.rpartition("<|user|>")[2].partition("<|end|>")[0]
