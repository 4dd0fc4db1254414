"""Limits on what a request may bring: the size and time of its body, and the caps of its fields."""

import asyncio
from collections.abc import Mapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trimtab.errors import TrimtabError
from trimtab_server.errors import BodyTooLarge, InvalidRequest, SlowRequest, response

MAX_CHOICES = 8
MAX_PROMPTS = 16
MAX_STOP = 4
MAX_LOGPROBS = 20
LOGPROBS = ("logprobs", "top_logprobs", "prompt_logprobs")
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


def check_caps(fields: Mapping[str, Any]) -> None:
    """Refuse a generation request that asks for too much at once.

    Raises:
        InvalidRequest: naming the field and its cap.
    """
    sizes = {
        "n": (fields.get("n"), MAX_CHOICES),
        "stop": (fields.get("stop"), MAX_STOP),
        "prompt": (fields.get("prompt"), MAX_PROMPTS),
        # vLLM's own limit is wider, for the candidates of a tree search.
        **{name: (fields.get(name), MAX_LOGPROBS) for name in LOGPROBS},
    }
    for name, (value, cap) in sizes.items():
        if isinstance(value, list):
            # A flat list of integers is one prompt, given as token ids.
            size = 1 if name == "prompt" and value and isinstance(value[0], int) else len(value)
        else:
            size = value if isinstance(value, int) else 0
        if size > cap:
            raise InvalidRequest(f"{name} is over this server's limit of {cap}.", param=name)
