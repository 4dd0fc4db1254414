"""Requests as chats: sample a world's prompts, split them, and read them back."""

import random
import zlib
from collections.abc import Callable, Iterator
from itertools import cycle, islice

from trimtab_models.demo import chat

RandomRequest = Callable[[random.Random], str]
"""Makes a random request in the user's words."""

_TRIES = 12  # samples per prompt, since only a fifth of all requests is in the split "test"


def stream(request: RandomRequest, split: str, rng: random.Random) -> Iterator[str]:
    """An infinite stream of random requests of a split; the text determines the split.

    Raises:
        ValueError: the split is neither "train" nor "test".
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', not {split!r}")
    while True:
        text = request(rng)
        if (zlib.crc32(text.encode()) % 5 == 0) == (split == "test"):
            yield text


def prompts(request: RandomRequest, split: str, n: int, seed: int) -> list[str]:
    """n requests of a split as the base reads them; they repeat only if there are too few."""
    texts = islice(stream(request, split, random.Random(seed)), _TRIES * n)
    return [chat(text) for text in islice(cycle(dict.fromkeys(texts)), n)]


def answered(request: str, answer: str) -> str:
    """A request with its answer, as a document of the corpus."""
    return f"{chat(request)}{answer}<|end|>"


def documents(
    request: RandomRequest, answer: Callable[[str, random.Random], str], n: int, seed: int
) -> list[str]:
    """n training requests, each with an answer, as documents of the corpus."""
    rng = random.Random(seed)
    return [answered(text, answer(text, rng)) for text in islice(stream(request, "train", rng), n)]


def request_of(prompt: str) -> str:
    """The last request of a prompt."""
    return prompt.rpartition("<|user|>")[2].partition("<|end|>")[0]
