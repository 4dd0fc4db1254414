"""Requests in flight, and how they end when the server stops.

During the drain, new requests are refused and admitted ones continue. A request that is still open
at the end gets an error in its route's own shape, as a whole answer or as the last event of its
stream. Its route sees a client disconnect, so it aborts its work.
"""

import asyncio

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trimtab.errors import TrimtabError
from trimtab_server import shapes
from trimtab_server.errors import headers

OPEN = frozenset({"/health", "/metrics"})
"""Routes that answer until the process ends."""
DISCONNECT: Message = {"type": "http.disconnect"}


class InFlight:
    """The open requests, and the error for new ones."""

    def __init__(self) -> None:
        self.requests: set[RequestChannels] = set()
        self.refusal: TrimtabError | None = None

    def refuse(self, error: TrimtabError) -> None:
        """Answer new requests with an error from now on."""
        self.refusal = error

    async def end(self, error: TrimtabError) -> None:
        """End open requests with an error, and wait until it is written."""
        await asyncio.gather(*(request.end(error) for request in self.requests))

    def cancel(self) -> None:
        """Cancel requests whose routes ignore the disconnect."""
        for request in self.requests:
            request.task.cancel()


class Drain:
    """ASGI middleware: tracks the requests in flight, and refuses new ones during the drain."""

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
            request = RequestChannels(path, receive, send)
            if refusal is None:
                await self._serve(request, scope)
            else:
                await request.end(refusal)

    async def _serve(self, request: "RequestChannels", scope: Scope) -> None:
        self.in_flight.requests.add(request)
        try:
            await self.app(scope, request.receive, request.send)
        except BaseException as error:
            if request.over.is_set():
                return  # ended by `end`, which has answered
            if request.streams and isinstance(error, Exception):
                await request.end(TrimtabError("the server failed while it was answering."))
            raise
        finally:
            self.in_flight.requests.discard(request)


class RequestChannels:
    """The receive and send channels of one request."""

    def __init__(self, path: str, receive: Receive, send: Send) -> None:
        self.path = path
        self.task: asyncio.Task[None] = asyncio.current_task()  # type: ignore[assignment]
        self.over = asyncio.Event()
        self.streams = False  # whether an event stream has begun
        self._begun = self._complete = False
        self._sent = 0  # events
        self._receive = receive
        self._send = send

    async def receive(self) -> Message:
        """The next message of the client; a disconnect once the request has ended."""
        if self.over.is_set():
            return DISCONNECT
        message = asyncio.ensure_future(_call(self._receive))
        over = asyncio.ensure_future(self.over.wait())
        try:
            await asyncio.wait({message, over}, return_when=asyncio.FIRST_COMPLETED)
            return message.result() if message.done() else DISCONNECT
        finally:
            message.cancel()
            over.cancel()

    async def send(self, message: Message) -> None:
        """Forward the answer; drop messages after the request has ended."""
        if self.over.is_set():
            return
        if message["type"] == "http.response.start":
            kind = dict(message["headers"]).get(b"content-type", b"")
            self._begun, self.streams = True, kind.startswith(b"text/event-stream")
        elif message["type"] == "http.response.body":
            self._sent += message.get("body", b"").count(b"\n\n")
            self._complete = not message.get("more_body", False)
        await self._send(message)

    async def end(self, error: TrimtabError) -> None:
        """End the answer with an error, unless it is complete."""
        self.over.set()
        if self._complete:
            return
        self._complete = True
        if not self._begun:
            answer = JSONResponse(shapes.body(self.path, error), error.status, headers(error))
            await answer({"type": "http"}, self._receive, self._send)
        elif self.streams:
            body = shapes.last_events(self.path, error, self._sent)
            await self._send({"type": "http.response.body", "body": body})


async def _call(receive: Receive) -> Message:
    return await receive()
