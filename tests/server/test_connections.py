"""What a stranger may send before a key is read: size, number and time of headers, connections."""

import asyncio
import json
import time
from contextlib import asynccontextmanager, suppress

import pytest
import uvicorn
from prometheus_client import REGISTRY
from starlette.responses import PlainTextResponse

from trimtab_server import http, serving

pytestmark = pytest.mark.scorecard(letter="S")

GOOD = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"
SECONDS = 0.5


async def app(scope, receive, send):
    if scope["path"] == "/whole":
        while (await receive()).get("more_body", False):
            pass
    await PlainTextResponse("good")(scope, receive, send)


@asynccontextmanager
async def served(config=None):
    """The application, served as ours are, or with another configuration."""
    config = config or serving.configure(app, port=0, lifespan="off", log_level="warning")
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = server.force_exit = True
        await task


@pytest.fixture
async def port(monkeypatch):
    monkeypatch.setattr(http, "HEAD_SECONDS", SECONDS)
    async with served() as port:
        yield port


async def ask(port, data=GOOD, seconds=10.0):
    """What comes back until the server closes, or has answered whole."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    got = b""
    try:
        async with asyncio.timeout(seconds):
            writer.write(data)
            await writer.drain()
            while chunk := await reader.read(2**16):
                got += chunk
                if got.endswith(b"good"):
                    break
    except ConnectionError:
        pass
    finally:
        writer.close()
    return got


def status(answer):
    return int(answer.split(b" ", 2)[1])


def refused(reason):
    return REGISTRY.get_sample_value("trimtab_refused_requests_total", {"reason": reason}) or 0.0


async def test_a_request_passes(port):
    assert status(await ask(port)) == 200
    many = b"".join(b"X-%d: y\r\n" % i for i in range(100))
    assert status(await ask(port, GOOD[:-2] + many + b"\r\n")) == 200


@pytest.mark.parametrize(
    "head",
    [
        b"X-Large: " + b"a" * 2**20,
        b"".join(b"X-%d: y\r\n" % i for i in range(500_000)),
        b"".join(b"X-%d: y\r\n" % i for i in range(200)),
    ],
    ids=["one large", "half a million", "too many, though small"],
)
async def test_headers_have_a_size_and_a_number(port, head, caplog):
    before = refused("large_headers")
    answer = await ask(port, GOOD[:-2] + head + b"\r\n")
    if answer:  # a sender that still writes when the server closes may not see it
        assert status(answer) == 431
        error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
        assert error["type"] == "request_too_large"
    assert refused("large_headers") == before + 1
    assert not caplog.records
    assert status(await ask(port)) == 200


async def test_uvicorn_alone_takes_too_many_headers():
    """The control: its own protocols have no such limit."""
    async with served(uvicorn.Config(app, port=0, lifespan="off", http="httptools")) as port:
        many = b"".join(b"X-%d: y\r\n" % i for i in range(10_000))
        assert status(await ask(port, GOOD[:-2] + many + b"\r\n")) == 200


async def test_no_http_is_refused_without_a_line_in_the_log(port, caplog):
    answer = await ask(port, b"\x16\x03\x01 this is no HTTP\r\n\r\n")
    assert status(answer) == 400
    assert b"not valid HTTP" in answer
    assert not caplog.records


async def dribble(port, data):
    """Send byte after byte; what came back, and how long the server bore it."""
    began, got = time.monotonic(), b""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for byte in data:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.05)
            if reader.at_eof():
                break
        async with asyncio.timeout(5):
            got = await reader.read()
    except ConnectionError:
        pass
    finally:
        writer.close()
    return got, time.monotonic() - began


async def test_headers_have_a_deadline(port):
    """Two hundred connections that dribble are gone in time, and others are served meanwhile."""
    before = refused("slow_headers")
    slow = [asyncio.create_task(dribble(port, GOOD * 9)) for _ in range(198)]
    slow += [asyncio.create_task(dribble(port, b"")) for _ in range(2)]
    await asyncio.sleep(SECONDS / 2)
    assert status(await ask(port)) == 200
    for got, took in await asyncio.gather(*slow):
        assert took < SECONDS + 4
        assert not got or status(got) == 408
    assert refused("slow_headers") == before + 200


@pytest.mark.slow
async def test_the_deadline_begins_anew_with_each_request(port):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(4):
        await asyncio.sleep(SECONDS * 0.6)
        writer.write(GOOD)
        assert (await reader.readuntil(b"good")).startswith(b"HTTP/1.1 200")
    writer.close()


async def test_a_body_after_its_answer_has_the_same_deadline(port):
    """A refusal comes before the body is read; who goes on sending it is cut."""
    head = b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 1000000\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head)
    assert (await reader.readuntil(b"good")).startswith(b"HTTP/1.1 200")
    began = time.monotonic()
    with suppress(ConnectionError):
        while time.monotonic() - began < 10 and not reader.at_eof():
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.05)
    writer.close()
    assert time.monotonic() - began < SECONDS + 4


@pytest.mark.slow
async def test_a_slow_body_is_the_applications(port):
    head = b"POST /whole HTTP/1.1\r\nHost: here\r\nContent-Length: 3\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head)
    for byte in (b"a", b"b", b"c"):
        await asyncio.sleep(SECONDS * 0.8)
        writer.write(byte)
    assert (await reader.readuntil(b"good")).startswith(b"HTTP/1.1 200")
    writer.close()


async def test_a_broken_body_ends_its_request_alone(port, caplog):
    broken = b"POST /whole HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\nzebra\r\n"
    assert status(await ask(port, broken)) == 400
    assert status(await ask(port)) == 200
    assert not caplog.records


async def test_open_connections_are_bounded_and_the_next_is_served(port, monkeypatch):
    monkeypatch.setattr(http, "MAX_CONNECTIONS", 20)
    monkeypatch.setattr(http, "HEAD_SECONDS", 60)
    opened = [await asyncio.open_connection("127.0.0.1", port) for _ in range(60)]
    assert status(await ask(port)) == 200
    gone = [reader for reader, _ in opened if reader.at_eof() or reader.exception()]
    assert len(gone) >= 40
    for _, writer in opened:
        writer.close()
