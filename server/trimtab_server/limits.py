"""Limits on what a request may bring: the size and time of its body."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trimtab.errors import TrimtabError
from trimtab_server.errors import BodyTooLarge, SlowRequest, response

BODY_SECONDS = 30.0


class BodyLimit:
    """ASGI middleware: reads a body whole before any route sees it, or answers 413 or 408."""

    def __init__(self, app: ASGIApp, max_bytes: int, seconds: float = BODY_SECONDS) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            declared = dict(scope["headers"]).get(b"content-length", b"0")
            if not declared.isdigit() or int(declared[:20]) > self.max_bytes:
                raise self._too_large()
            async with asyncio.timeout(self.seconds):
                body = await self._read(receive)
        except TimeoutError:
            error: TrimtabError = SlowRequest(
                f"the request's body did not arrive within {self.seconds:g} seconds."
            )
        except TrimtabError as refused:
            error = refused
        else:
            if body is not None:
                await self.app(scope, replay(body, receive), send)
            return
        await response(error)(scope, receive, send)

    async def _read(self, receive: Receive) -> bytes | None:
        chunks: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            if size > self.max_bytes:
                raise self._too_large()
            if not message.get("more_body", False):
                return b"".join(chunks)

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"the request's body is larger than {self.max_bytes} bytes.")


def replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives `body` first and then what the client really does (disconnect)."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return pending.pop() if pending else await receive()

    return receive_again
