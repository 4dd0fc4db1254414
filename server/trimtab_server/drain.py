"""Requests in flight, and how they end when the server does.

While the server stops, new requests are refused, and those that were admitted go on. What is
still open at the end gets an error in its route's own shape, as a whole answer or as the last
event of its stream; to the routes it looks as if the client had left, so they abort their work.
"""

import asyncio

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trimtab.errors import TrimtabError
from trimtab_server import shapes
from trimtab_server.errors import headers

OPEN = frozenset({"/health", "/metrics"})
"""Routes that answer to the end: the process lives."""
LEFT: Message = {"type": "http.disconnect"}


class InFlight:
    """The requests that have begun and not ended, and what new ones are told."""

    def __init__(self) -> None:
        self.requests: set[Request] = set()
        self.refusal: TrimtabError | None = None

    def refuse(self, error: TrimtabError) -> None:
        """Answer new requests with an error from now on."""
        self.refusal = error

    async def end(self, error: TrimtabError) -> None:
        """End what is open with an error. Waits for clients to read as much."""
        await asyncio.gather(*(request.end(error) for request in self.requests))

    def cancel(self) -> None:
        """Cancel the work of requests that have ended and do not notice it."""
        for request in self.requests:
            request.task.cancel()


class Drain:
    """ASGI middleware: keeps account of the requests in flight, and refuses new ones."""

    def __init__(self, app: ASGIApp, in_flight: InFlight) -> None:
        self.app = app
        self.in_flight = in_flight

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        refusal = self.in_flight.refusal
        if scope["type"] == "lifespan" or path in OPEN:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            if refusal is None:
                await self.app(scope, receive, send)
            else:
                await send({"type": "websocket.close", "code": 1012, "reason": refusal.message})
        else:
            request = Request(path, receive, send)
            if refusal is None:
                await self._serve(request, scope)
            else:
                await request.end(refusal)

    async def _serve(self, request: "Request", scope: Scope) -> None:
        self.in_flight.requests.add(request)
        try:
            await self.app(scope, request.receive, request.send)
        except BaseException as error:
            if request.over.is_set():
                return  # it was ended on purpose, and has its answer
            if request.streams and isinstance(error, Exception):
                await request.end(TrimtabError("the server failed while it was answering."))
            raise
        finally:
            self.in_flight.requests.discard(request)


class Request:
    """One request's way in and out."""

    def __init__(self, path: str, receive: Receive, send: Send) -> None:
        self.path = path
        self.task: asyncio.Task[None] = asyncio.current_task()  # type: ignore[assignment]
        self.over = asyncio.Event()
        self.streams = False  # whether the answer has begun as server-sent events
        self._begun = self._whole = False
        self._sent = 0  # events
        self._receive = receive
        self._send = send

    async def receive(self) -> Message:
        """What the client sends; once the request was ended, that it has left."""
        if self.over.is_set():
            return LEFT
        given = asyncio.ensure_future(_call(self._receive))
        over = asyncio.ensure_future(self.over.wait())
        try:
            await asyncio.wait({given, over}, return_when=asyncio.FIRST_COMPLETED)
            return given.result() if given.done() else LEFT
        finally:
            given.cancel()
            over.cancel()

    async def send(self, message: Message) -> None:
        """Pass the answer on; nothing after the request was ended."""
        if self.over.is_set():
            return
        if message["type"] == "http.response.start":
            kind = dict(message["headers"]).get(b"content-type", b"")
            self._begun, self.streams = True, kind.startswith(b"text/event-stream")
        elif message["type"] == "http.response.body":
            self._sent += message.get("body", b"").count(b"\n\n")
            self._whole = not message.get("more_body", False)
        await self._send(message)

    async def end(self, error: TrimtabError) -> None:
        """End the answer with an error, unless it is whole."""
        self.over.set()
        if self._whole:
            return
        self._whole = True
        if not self._begun:
            answer = JSONResponse(shapes.body(self.path, error), error.status, headers(error))
            await answer({"type": "http"}, self._receive, self._send)
        elif self.streams:
            body = shapes.last_events(self.path, error, self._sent)
            await self._send({"type": "http.response.body", "body": body})


async def _call(receive: Receive) -> Message:
    return await receive()
