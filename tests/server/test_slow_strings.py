"""No text makes the server slow: time against length, field by field, through vLLM itself."""

import json
import time

import pytest

from covered import quietly
from growth import LINEAR, exponent

pytestmark = [pytest.mark.engine, pytest.mark.scorecard(letter="B")]
SECONDS = 0.25
PATTERNS = ["/a", " ", '\n File "a', "[{é"]
CHAT = [{"role": "user", "content": "hi"}]
LONG = [
    "model",
    "user",
    "stop",
    "request_id",
    "cache_salt",
    "chat_template",
    "tool_choice",
    "zebra",
]


def bodies(text):
    """A body of each kind with `text` in each of its fields."""
    for field in LONG:
        yield "/v1/completions", {"prompt": "a", "max_tokens": 1, field: text}
        yield "/v1/chat/completions", {"messages": CHAT, "max_tokens": 1, field: text}
    for turn in (
        {"role": text, "content": "hi"},
        {"role": "user", "content": text},
        {"role": "user", "content": [{"type": text, "text": "hi"}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": text}}]},
        {"role": "user", "content": "hi", "name": text},
        {"role": "assistant", "tool_calls": [{"id": text, "type": "function", "function": text}]},
        {"role": "tool", "tool_call_id": text, "content": "hi"},
    ):
        yield "/v1/chat/completions", {"messages": [turn], "max_tokens": 1}
        yield "/v1/messages", {"model": "demo", "messages": [turn], "max_tokens": 1}
    yield "/v1/chat/completions", {"messages": CHAT, "tools": [{"function": {"name": text}}]}
    yield "/v1/chat/completions", {"messages": CHAT, "response_format": {"type": text}}
    yield "/v1/chat/completions", {"messages": CHAT, "metadata": {text[:256]: text}}
    yield "/v1/completions", {"prompt": text, "max_tokens": 1}
    yield "/v1/completions", {"prompt": "a", "max_tokens": 1, "vllm_xargs": {"a": text}}
    yield "/v1/responses", {"input": text, "max_output_tokens": 1}
    yield "/v1/responses", {"input": "hi", "previous_response_id": text}
    yield "/generate", {"prompt": text, "max_tokens": 1}
    yield "/generate", {"prompt": "a", "scorers": {text[:256]: 1.0}}
    yield "/tokenize", {"prompt": text}


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
def test_texts_at_the_limits_and_beyond_are_quick(server, pattern):
    for length in (1000, 8192):
        text = (pattern * length)[:length]
        for path, body in bodies(text):
            content = json.dumps(body).encode()
            took = timed(server, path, content)
            if took >= SECONDS:  # once may be the machine
                took = timed(server, path, content)
            assert took < SECONDS, f"{path} {list(body)} at {length}: {took:.3f} s"


def timed(server, path, content):
    began = time.perf_counter()
    answer = server.http.post(path, content=content, headers={"Content-Type": "application/json"})
    took = time.perf_counter() - began
    assert answer.status_code < 500, answer.text[:500]
    return took if took < SECONDS or answer.status_code != 200 else 0.0


def test_vllms_own_pattern_is_worse_than_linear():
    """The control: what it does to a message that holds a model's name."""
    cleaning = quietly("vllm.entrypoints.serve.exception_handling.utils")
    assert exponent(lambda size: cleaning.sanitize_message("/a" * size), 150, 8) > LINEAR
