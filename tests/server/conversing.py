"""Functions that tell a prompt and a conversation apart, for the tests of routes."""

import json
import zlib


def pair(prompt: str, answer: str) -> float:
    """A whole number of the prompt, and a fraction of the answer."""
    return number(prompt) + fraction(answer)


def chat(messages: list[dict[str, str]]) -> float:
    """A whole number of the conversation, and a fraction of its answer."""
    *before, last = messages
    assert set(last) == {"role", "content"}
    assert last["role"] == "assistant"
    return number(before) + fraction(last["content"])


def answer(text: str) -> float:
    """A fraction of the answer, if it comes without the prompt and its template."""
    return float("user:" in text or "Write a review" in text) + fraction(text)


def fraction(text: str) -> float:
    """A number below 1 that differs between candidates, so that the scorer steers."""
    return len(text) % 16 / 16


def number(content: object) -> float:
    """A whole number that float32 has exactly, also with a fraction."""
    return float(zlib.crc32(json.dumps(content).encode()) % 2**20)
