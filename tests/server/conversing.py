"""Functions that tell a prompt and a conversation apart, for the tests of routes."""

import json
import zlib


def pair(prompt: str, answer: str) -> float:
    """A number of the prompt; the answer does not change it."""
    return number(prompt)


def chat(messages: list[dict[str, str]]) -> float:
    """A number of the conversation, without its answer, which is text of the assistant."""
    *before, last = messages
    assert set(last) == {"role", "content"}
    assert last["role"] == "assistant"
    return number(before)


def answer(text: str) -> float:
    """0 for an answer without the prompt and its template."""
    return float("user:" in text or "Write a review" in text)


def number(content: object) -> float:
    """A number that float32 has exactly."""
    return float(zlib.crc32(json.dumps(content).encode()) % 2**20)
