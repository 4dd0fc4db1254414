"""A flood of random bodies, made beforehand and sent at a steady pace over kept connections."""

import asyncio
import json
import random
import time
from collections import Counter
from contextlib import suppress

PATHS = ("/generate", "/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages")
GOOD = {
    "model": "demo",
    "prompt": "The room was",
    "messages": [{"role": "user", "content": "Write a review."}],
    "input": "The room was",
    "max_tokens": 1,
    "beta": 2.0,
    "guidance": {"scorers": {"sentiment": 1.0}, "beta": 2.0},
    "stop": ["x"],
    "temperature": 0.5,
    "n": 1,
    "stream": False,
}
CONNECTIONS = 20


def bodies(number: int, seed: int) -> list[tuple[str, bytes]]:
    """Paths and bodies: noise, JSON of any shape, good requests with a part changed, and worse."""
    draw = random.Random(seed)
    return [(draw.choice(PATHS), draw.choice(KINDS)(draw)) for _ in range(number)]


def _noise(draw: random.Random) -> bytes:
    return draw.randbytes(draw.choice((0, 10, 1000, 30_000)))


def _json(draw: random.Random) -> bytes:
    return json.dumps({draw.choice([*GOOD]): _value(draw, 4) for _ in range(4)}).encode()


def _value(draw: random.Random, depth: int) -> object:
    kinds = [
        None,
        True,
        draw.uniform(-9, 9),
        draw.randint(-(10**9), 10**9),
        "a" * draw.randint(0, 50),
    ]
    if depth and draw.random() < 0.6:
        inner = [_value(draw, depth - 1) for _ in range(draw.randint(0, 4))]
        return draw.choice([inner, {f"k{i}": value for i, value in enumerate(inner)}])
    return draw.choice(kinds)


def _changed(draw: random.Random) -> bytes:
    fields = {**GOOD, draw.choice([*GOOD]): _value(draw, 3)}
    return json.dumps(fields).encode()


def _broken(draw: random.Random) -> bytes:
    body = bytearray(json.dumps(GOOD).encode())
    for _ in range(draw.randint(1, 5)):
        at = draw.randrange(len(body))
        body[at : at + draw.randint(0, 3)] = draw.randbytes(draw.randint(0, 3))
    return bytes(body)


def _hostile(draw: random.Random) -> bytes:
    size = draw.choice((1000, 10_000, 60_000))
    text = draw.choice(
        ('\\"', '"', "\\", "[", '{"a":', "9", "\\u0041", " ", "/a", "é", '"x",', "1,")
    )
    field = draw.choice([*GOOD])
    open_, close = draw.choice((('"', '"'), ("[", "1]"), ("", ""), ('"', "")))
    return f'{{"{field}": {open_}{(text * size)[:size]}{close}}}'.encode()


KINDS = (_noise, _json, _changed, _broken, _hostile)


async def send(
    port: int, key: str, made: list[tuple[str, bytes]], rate: float, until: asyncio.Event
) -> Counter[int]:
    """Send them over and over, `rate` a second, until stopped; counts of statuses."""
    statuses: Counter[int] = Counter()
    began = time.monotonic()
    numbers = iter(range(10**9))

    async def worker() -> None:
        while not until.is_set():
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            kept = True
            while kept and not until.is_set():
                number = next(numbers)
                await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
                path, body = made[number % len(made)]
                writer.write(head(path, key, len(body)) + body)
                status, kept = await _answer(reader)
                statuses[status] += 1
            await close(writer)

    await asyncio.gather(*(worker() for _ in range(CONNECTIONS)))
    return statuses


async def close(writer: asyncio.StreamWriter) -> None:
    """Close a connection, and wait until it is."""
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


def head(path: str, key: str, size: int) -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {size}\r\n\r\n"
    ).encode()


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bool]:
    """The status, and whether the connection is kept."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        if b"content-length: " in head:
            await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0]))
        else:  # a stream
            await reader.readuntil(b"0\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return 0, False
    return int(head.split(b" ", 2)[1]), b"connection: close" not in head
