"""Requests in flight when the server ends, over real connections: none is cut without a word."""

import asyncio
import json
import logging
import socket

import httpx
import pytest
from starlette.responses import StreamingResponse

from trimtab_server import serving
from trimtab_server.drain import Drain, InFlight

pytestmark = pytest.mark.scorecard(letter="F")

STREAM = {"type": "http.response.start", "status": 200}
STREAM["headers"] = [(b"content-type", b"text/event-stream")]
BLOCK = b"data: {}\n\n" + b":" + b"x" * 2**16 + b"\n\n"
ROUTES = ["/generate", "/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages"]


async def endless():
    while True:
        yield BLOCK
        await asyncio.sleep(0)


class Application:
    """Answers as its path says; `left` are the requests whose client was seen to leave."""

    def __init__(self):
        self.left, self.cancelled = [], []
        self.go = asyncio.Event()

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return
        path, query = scope["path"], scope["query_string"]
        if path == "/deaf":  # it waits for nobody
            try:
                await asyncio.sleep(300)
            except asyncio.CancelledError:
                self.cancelled.append(path)
                raise
        if path == "/endless":
            await StreamingResponse(endless(), media_type="text/event-stream")(scope, receive, send)
            return
        if b"stream" in query:
            await send(STREAM)
        if path == "/breaks":
            await send(STREAM)
            await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
            raise RuntimeError("planted")
        if path != "/health":
            work = asyncio.ensure_future(self.go.wait())
            leave = asyncio.ensure_future(self.leaves(receive))
            await asyncio.wait({work, leave}, return_when=asyncio.FIRST_COMPLETED)
            if leave.done():
                self.left.append(path)
                work.cancel()
                return
            leave.cancel()
        if b"stream" in query:
            await send({"type": "http.response.body", "body": b"data: 1\n\ndata: [DONE]\n\n"})
        else:
            head = {"type": "http.response.start", "status": 200, "headers": []}
            await send(head)
            await send({"type": "http.response.body", "body": b"whole"})

    async def leaves(self, receive):
        while (await receive())["type"] != "http.disconnect":
            pass


class Served:
    """The application, served by serving.serve in this process."""

    def __init__(self, drain=20.0):
        self.app, self.in_flight = Application(), InFlight()
        self.dead, self.deadlines = False, []
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        config = serving.configure(Drain(self.app, self.in_flight), lifespan="off")
        self.ended = asyncio.create_task(
            serving.serve(config, listener, self.in_flight, self, drain, lambda: self.dead)
        )
        self.http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", timeout=30)

    def first(self, work):
        """Signals.first: what the signal does."""
        self.signal = work

    async def begin(self, *paths):
        """Requests that are in flight when this returns."""
        sent = [asyncio.create_task(self.http.post(path)) for path in paths]
        while len(self.in_flight.requests) < len(paths):
            await asyncio.sleep(0.01)
        return sent


@pytest.fixture
async def served(monkeypatch):
    deadlines = []
    monkeypatch.setattr(serving, "leave_within", lambda *args: deadlines.append(args))
    made = []

    def make(**options):
        made.append(Served(**options))
        made[-1].deadlines = deadlines
        return made[-1]

    yield make
    for one in made:
        await one.http.aclose()
        one.signal()
        await asyncio.wait_for(one.ended, 10)


def error_of(path, answer):
    """The error that an answer ends with, and what stands before it in a stream."""
    if not answer.headers["content-type"].startswith("text/event-stream"):
        assert answer.status_code == 503
        body = answer.json()
        return body["error"], []
    *events, error, done, rest = answer.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    head, _, data = error.rpartition("data: ")
    named = path.startswith(("/v1/responses", "/v1/messages"))
    assert head == ("event: error\n" if named else "")
    body = json.loads(data)
    if path == "/v1/responses":
        assert body["type"] == "error"
        assert body["sequence_number"] == len(events)
        return body, events
    assert body.get("type") == ("error" if path == "/v1/messages" else None)
    return body["error"], events


@pytest.mark.slow
async def test_what_was_admitted_ends_well_and_what_comes_is_refused(served):
    one = served()
    sent = await one.begin("/generate?stream", "/v1/chat/completions")
    one.signal()
    await asyncio.sleep(0.05)
    for path in ("/ready", "/generate", "/v1/messages"):
        refused = await one.http.post(path)
        assert refused.status_code == 503
        assert "stopping" in refused.json()["error"]["message"]
        assert refused.headers["retry-after"] == "5"
        assert refused.headers["connection"] == "close"
    assert (await one.http.get("/health")).status_code == 200
    await asyncio.sleep(10 * serving.TICK)
    assert not one.ended.done()
    assert len(one.in_flight.requests) == 2  # they have their time
    one.app.go.set()
    stream, whole = await asyncio.gather(*sent)
    assert stream.text == "data: 1\n\ndata: [DONE]\n\n"
    assert whole.text == "whole"
    assert await asyncio.wait_for(one.ended, 5) is True
    assert one.deadlines == [(serving.LAST_SECONDS, 0)]
    with pytest.raises(httpx.ConnectError):
        await one.http.get("/health")


@pytest.mark.parametrize("path", ROUTES)
async def test_after_the_deadline_all_end_with_an_error(served, path):
    one = served(drain=0.3)
    sent = await one.begin(f"{path}?stream", path)
    one.signal()
    for answer in await asyncio.wait_for(asyncio.gather(*sent), 5):
        error, _ = error_of(path, answer)
        assert "stopping" in error["message"]
    assert await asyncio.wait_for(one.ended, 5) is True
    assert one.app.left == [path, path]  # their routes abort their work
    assert not one.in_flight.requests


async def test_an_idle_server_ends_at_once(served):
    one = served()
    await one.http.get("/health")
    one.signal()
    assert await asyncio.wait_for(one.ended, 2) is True


async def test_routes_that_wait_for_nobody_are_cancelled(served, caplog):
    one = served(drain=0.2)
    sent = await one.begin("/deaf")
    one.signal()
    [answer] = await asyncio.gather(*sent)
    assert answer.status_code == 503
    assert await asyncio.wait_for(one.ended, 5) is True
    assert one.app.cancelled == ["/deaf"]
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


async def not_reading(one):
    """A client of an endless answer that never reads."""
    reader, writer = await asyncio.open_connection("127.0.0.1", one.port)
    reader._transport.pause_reading()
    writer.write(b"POST /endless HTTP/1.1\r\nHost: here\r\n\r\n")
    while not one.in_flight.requests:
        await asyncio.sleep(0.01)
    return writer


@pytest.mark.slow
async def test_a_client_that_does_not_read_holds_up_nothing(served, monkeypatch):
    monkeypatch.setattr(serving, "DRAIN_STALL_SECONDS", 0.5)
    one = served()
    writer = await not_reading(one)
    await asyncio.sleep(1.5)  # by now all buffers are full
    assert one.in_flight.requests  # the control: so long as nobody stops it, it waits
    one.signal()
    assert await asyncio.wait_for(one.ended, 10) is True  # and not the 20 s of the drain
    writer.transport.abort()


async def test_a_client_that_does_not_read_is_cut_in_the_end(served, monkeypatch):
    monkeypatch.setattr(serving, "STALL_SECONDS", 0.5)
    one = served()
    writer = await not_reading(one)
    async with asyncio.timeout(10):
        while one.in_flight.requests:
            await asyncio.sleep(0.05)
    writer.transport.abort()


@pytest.mark.slow
async def test_a_slow_client_is_not_cut(served, monkeypatch):
    monkeypatch.setattr(serving, "STALL_SECONDS", 1.0)
    monkeypatch.setattr(serving, "STALL_BYTES", 2**10)
    one = served()
    got = 0
    async with one.http.stream("POST", "/endless") as answer:
        async for piece in answer.aiter_raw(2**16):
            got += len(piece)
            await asyncio.sleep(0.05)
            if got > 2**16 * 60:
                break
    assert got > 2**16 * 60


async def test_when_the_engine_dies_all_end_with_an_error(served, monkeypatch):
    monkeypatch.setattr(serving, "DEAD_SECONDS", 0.3)
    one = served()
    sent = await one.begin("/generate?stream", "/generate")
    one.dead = True
    for answer in await asyncio.wait_for(asyncio.gather(*sent), 5):
        assert "engine has died" in error_of("/generate", answer)[0]["message"]
    assert await asyncio.wait_for(one.ended, 5) is False
    assert one.deadlines == [(serving.LAST_SECONDS, 1)]


async def test_an_engine_that_dies_in_the_drain_is_not_waited_for(served):
    one = served()
    sent = await one.begin("/generate")
    one.signal()
    await asyncio.sleep(0.2)
    one.dead = True
    [answer] = await asyncio.wait_for(asyncio.gather(*sent), 5)
    assert answer.status_code == 503
    assert await asyncio.wait_for(one.ended, 5) is True


async def test_a_stream_that_breaks_ends_with_an_error(served):
    one = served()
    answer = await one.http.post("/breaks")
    error, before = error_of("/breaks", answer)
    assert before == ["data: 1"]
    assert error["type"] == "internal_error"
    assert "planted" not in answer.text
