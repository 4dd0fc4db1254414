"""Limits on a request's body: its size and its time to arrive."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trimtab.errors import TrimtabError
from trimtab_server import metrics
from trimtab_server.errors import BodyTooLarge, Busy, SlowRequest, response

BODY_SECONDS = 30.0
ALL_BODIES_BYTES = 2**28
"""Maximum size of the bodies of all open requests together."""


class BodyLimit:
    """ASGI middleware: reads the whole body before the route, or answers 413, 408 or 429."""

    def __init__(self, app: ASGIApp, max_bytes: int, seconds: float = BODY_SECONDS) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.seconds = seconds
        self.total = 0  # bytes of the bodies of open requests
        self.max_total = max(ALL_BODIES_BYTES, max_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body, size = bytearray(), 0
        try:
            try:
                whole = await self._read(scope, receive, body)
            except TrimtabError as error:
                await response(error)(scope, receive, send)
                return
            size, content = len(body), bytes(body)
            body.clear()
            if whole:
                await self.app(scope, replay(content, receive), send)
        finally:
            self.total -= size or len(body)

    async def _read(self, scope: Scope, receive: Receive, body: bytearray) -> bool:
        """Fill `body`; False if the client disconnects.

        Raises:
            BodyTooLarge, SlowRequest: it is too large, or does not arrive in time.
            Busy: all bodies together reach their limit.
        """
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit() or int(declared[:20]) > self.max_bytes:
            raise self._too_large()
        try:
            async with asyncio.timeout(self.seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return False
                    chunk = message.get("body", b"")
                    if len(body) + len(chunk) > self.max_bytes:
                        raise self._too_large()
                    if self.total + len(chunk) > self.max_total:
                        metrics.REFUSED.labels("bodies").inc()
                        raise Busy("the server holds as many bodies as it can; send it later.")
                    body += chunk
                    self.total += len(chunk)
                    if not message.get("more_body", False):
                        return True
        except TimeoutError:
            raise SlowRequest(
                f"the request's body did not arrive within {self.seconds:g} seconds."
            ) from None

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"the request's body is larger than {self.max_bytes} bytes.")


def replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that returns `body` first, then the client's further messages (disconnect)."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return pending.pop() if pending else await receive()

    return receive_again
