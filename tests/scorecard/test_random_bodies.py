"""A hundred random bodies a second beside one good stream, which hardly notices."""

import asyncio
import json
import socket
import statistics
import threading
import time
from collections import Counter

import pytest
import uvicorn
from conftest import KEY
from starlette.responses import PlainTextResponse, StreamingResponse

from scorecard import flood, full

pytestmark = [pytest.mark.engine, pytest.mark.scorecard(letter="B")]

SECONDS = 60.0 if full() else 5.0
ROUNDS = 4
RATE = 100.0
STREAM = {
    "prompt": "The room was",
    "scorers": {"sentiment": 1.0},
    "beta": 2.0,
    "temperature": 0,
    "max_tokens": 100,
    "ignore_eos": True,
    "stream": True,
}


async def stream(port: int, key: str, seconds: float) -> tuple[list[float], list[list[int]]]:
    """Times between tokens of streams, one after the other, and their tokens."""
    gaps: list[float] = []
    texts: list[list[int]] = []
    body = json.dumps(STREAM).encode()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
        writer.write(flood.head("/generate", key, len(body)) + body)
        assert b" 200 " in await reader.readline()
        tokens, last = [], None
        while b"[DONE]" not in (line := await reader.readline()):
            assert line, "the stream broke off"
            if line.startswith(b"data: {"):
                now, event = time.monotonic(), json.loads(line[6:])
                assert "error" not in event
                for choice in event["choices"]:
                    tokens += choice["token_ids"]
                    if last is not None:
                        gaps.append((now - last) / max(len(choice["token_ids"]), 1))
                    last = now
        await flood.close(writer)
        texts.append(tokens)
    return gaps, texts


async def measure(port: int, key: str, seconds: float):
    """Gaps of streams alone and beside the flood, in turns; all their tokens; the flood's answers
    by status, and their rate.
    """
    made = flood.bodies(500, seed=13)
    await stream(port, key, 0.1)  # warm
    alone: list[float] = []
    beside: list[float] = []
    tokens: list[list[int]] = []
    statuses: Counter[int] = Counter()
    flooded = 0.0
    for _ in range(ROUNDS):
        gaps, texts = await stream(port, key, seconds / ROUNDS)
        alone += gaps
        tokens += texts
        stop, began = asyncio.Event(), time.monotonic()
        flooding = asyncio.create_task(flood.send(port, key, made, RATE, stop))
        gaps, texts = await stream(port, key, seconds / ROUNDS)
        beside += gaps
        tokens += texts
        flooded += time.monotonic() - began
        stop.set()
        statuses += await flooding
    return alone, beside, tokens, statuses, statuses.total() / flooded


def test_a_stream_keeps_its_pace(server):
    """Its mean time between tokens at most doubles, its tokens stay, and nothing is a 5xx.

    Times are asserted in the long form alone, which has the machine for itself.
    """
    port = server.http.base_url.port
    alone, beside, texts, statuses, rate = asyncio.run(measure(port, KEY, SECONDS))
    ratio = statistics.mean(beside) / statistics.mean(alone)
    print(f"\nalone: {_told(alone)}\nbeside: {_told(beside)}")
    print(f"ratio {ratio:.2f}; {rate:.0f} bodies a second, answered {dict(statuses)}")
    assert all(400 <= status < 500 or status == 200 for status in statuses), statuses
    assert {tuple(text) for text in texts} == {tuple(texts[0])}
    if full():
        assert rate > 0.9 * RATE
        assert ratio < 2


async def blocks(scope, receive, send):
    """An application that holds its event loop for each body, as a slow reader does."""
    body = (await receive())["body"]
    if b'"stream": true' not in body:
        time.sleep(0.006)
        await PlainTextResponse("no", 400)(scope, receive, send)
        return

    async def events():
        for token in range(100):
            await asyncio.sleep(0.002)
            yield f"data: {json.dumps({'choices': [{'token_ids': [token]}]})}\n\n"
        yield "data: [DONE]\n\n"

    await StreamingResponse(events())(scope, receive, send)


def test_a_reader_that_blocks_would_be_noticed():
    """The control."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(blocks, lifespan="off", log_level="error")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            port = listener.getsockname()[1]
            alone, beside, _, _, rate = asyncio.run(measure(port, KEY, 1.0))
        finally:
            server.should_exit = server.force_exit = True
            thread.join()
    ratio = statistics.mean(beside) / statistics.mean(alone)
    assert ratio > 2 or rate < 0.9 * RATE


def _told(gaps: list[float]) -> str:
    cuts = statistics.quantiles(gaps, n=100)
    return (
        f"{1000 * statistics.mean(gaps):.1f} ms a token (median {1000 * cuts[49]:.1f}, "
        f"95 % {1000 * cuts[94]:.1f}, most {1000 * max(gaps):.0f}; n = {len(gaps)})"
    )
