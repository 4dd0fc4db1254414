"""Functions that tell a prompt and a conversation apart, for the tests of routes."""

import json
import zlib


def asked(prompt: str, answer: str) -> float:
    """A number of the prompt; the answer does not change it."""
    return number(prompt)


def said(messages: list[dict[str, str]]) -> float:
    """A number of the conversation, without its answer, which is text of the assistant."""
    *before, answer = messages
    assert set(answer) == {"role", "content"}
    assert answer["role"] == "assistant"
    return number(before)


def answered(answer: str) -> float:
    """0 for an answer without template and special tokens."""
    return float("<|" in answer or "assistant" in answer or "user" in answer)


def number(content: object) -> float:
    """A number that float32 has exactly."""
    return float(zlib.crc32(json.dumps(content).encode()) % 2**20)
