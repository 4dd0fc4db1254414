"""Connections: uvicorn's h11 protocol with limits on request heads and open connections.

The limits apply before any key is read. The head of a request has at most HEAD_BYTES and
MAX_HEADERS headers, and must arrive within HEAD_SECONDS. At most MAX_CONNECTIONS are open; one more
closes the connection that has been idle for longest.
"""

import asyncio
import http
import json
import logging
import sys
import time
from typing import Any

import h11
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from trimtab.errors import InvalidRequest, TrimtabError
from trimtab_server import metrics
from trimtab_server.errors import HeadersTooLarge, SlowRequest, response

HEAD_BYTES = 32 * 2**10
MAX_HEADERS = 128
HEAD_SECONDS = 10.0
MAX_CONNECTIONS = 1000

log = logging.getLogger(__name__)
log.setLevel(logging.ERROR)  # uvicorn warns of each request that is refused here


class Protocol(H11Protocol):
    """One connection. Its Config also needs h11_max_incomplete_event_size=HEAD_BYTES."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.logger = log
        self.app = _count_headers(self.app)
        self.idle_since = time.monotonic()
        self.deadline: asyncio.TimerHandle | None = None

    @property
    def idle(self) -> bool:
        """Whether no request is in progress."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Close an idle connection if there are too many, and wait for a request."""
        super().connection_made(transport)
        self._watch()
        if len(self.connections) > MAX_CONNECTIONS:
            idle = [c for c in self.connections if isinstance(c, Protocol) and c.idle]
            metrics.REFUSED.labels("connections").inc()
            min(idle, key=lambda one: one.idle_since).transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the deadline."""
        super().connection_lost(exc)
        self._stop_watch()

    def data_received(self, data: bytes) -> None:
        """Read data, and update the deadline."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Note the time, and wait for the rest of an unread body."""
        self.idle_since = time.monotonic()
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:  # otherwise uvicorn handles keep-alive
            self._watch()

    def send_400_response(self, msg: str) -> None:
        """Refuse invalid HTTP (uvicorn calls this in its handler of h11's error)."""
        if getattr(sys.exception(), "error_status_hint", 400) == 431:
            metrics.REFUSED.labels("large_headers").inc()
            self._refuse(_too_large())
        else:
            metrics.REFUSED.labels("no_http").inc()
            self._refuse(InvalidRequest("the request is not valid HTTP/1.1."))

    def _watch(self) -> None:
        """Set a deadline for a head, and for a body that was answered before it arrived."""
        ours, theirs = self.conn.our_state, self.conn.their_state
        answered = ours in (h11.DONE, h11.MUST_CLOSE) and theirs is h11.SEND_BODY
        if theirs is not h11.IDLE and not answered:
            self._stop_watch()
        elif self.deadline is None and not self.transport.is_closing():
            self.deadline = self.loop.call_later(HEAD_SECONDS, self._late)

    def _stop_watch(self) -> None:
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None

    def _late(self) -> None:
        metrics.REFUSED.labels("slow_headers").inc()
        message = f"the request's headers did not arrive within {HEAD_SECONDS:g} seconds."
        self._refuse(SlowRequest(message))

    def _refuse(self, error: TrimtabError) -> None:
        """Answer if that is still possible, and close."""
        cycle = self.cycle
        begun = cycle is not None and not cycle.response_complete and cycle.response_started
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True  # the application can stop
            cycle.message_event.set()
        if not begun and self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps(error.body()).encode()
            headers = [
                ("content-type", "application/json"),
                ("content-length", str(len(body))),
                ("connection", "close"),
            ]
            reason = http.HTTPStatus(error.status).phrase
            head = h11.Response(status_code=error.status, headers=headers, reason=reason)
            for event in (head, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
        self.loop.call_later(HEAD_SECONDS, self.transport.abort)  # if the client does not read


def _count_headers(app: ASGIApp) -> ASGIApp:
    async def counted(scope: Scope, receive: Receive, send: Send) -> None:
        if len(scope["headers"]) > MAX_HEADERS:
            metrics.REFUSED.labels("large_headers").inc()
            await response(_too_large())(scope, receive, send)
        else:
            await app(scope, receive, send)

    return counted


def _too_large() -> HeadersTooLarge:
    return HeadersTooLarge(
        f"the request has more than {MAX_HEADERS} headers, or more than {HEAD_BYTES} bytes of them."
    )
