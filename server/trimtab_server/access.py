"""The id of each request, and the access log.

A request without an `X-Request-Id` gets one, which the answer has too. The access log has the path
of the route, not of the request, and no query, header, key or body: nothing that a client wrote but
its request id.
"""

import logging
import time
import uuid
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trimtab_server.allowed import METHODS
from trimtab_server.request_ids import PLAIN
from trimtab_server.route_names import UNKNOWN, template
from trimtab_server.tracing import TRACE_ID

HEADER = b"x-request-id"
log = logging.getLogger(__name__)


class Requests:
    """ASGI middleware: gives each request an id, and logs it once it has been answered.

    logged: whether to write the access log.
    """

    def __init__(self, app: ASGIApp, logged: bool) -> None:
        self.app = app
        self.logged = logged
        if logged:
            log.setLevel(logging.INFO)  # whatever the level of other loggers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = time.perf_counter()
        sent = [value for name, value in scope["headers"] if name == HEADER]
        request_id = _valid(sent) if sent else uuid.uuid4().hex
        if not sent:
            scope["headers"] = [*scope["headers"], (HEADER, request_id.encode())]
        status = size = 0

        async def note(message: Message) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = list(message.get("headers", ()))
                if request_id != UNKNOWN and all(name.lower() != HEADER for name, _ in headers):
                    headers.append((HEADER, request_id.encode()))
                message = {**message, "headers": headers}
            elif message["type"] == "http.response.body":
                size += len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, receive, note)
        finally:
            if self.logged:
                _write(scope, status, time.perf_counter() - begun, size, request_id)


def _valid(ids: list[bytes]) -> str:
    text = ids[0].decode("latin-1")
    return text if len(ids) == 1 and PLAIN.fullmatch(text) else UNKNOWN


def _write(scope: Scope, status: int, seconds: float, size: int, request_id: str) -> None:
    """Log a request; status 0: the client has disconnected before the answer began."""
    fields: dict[str, Any] = {
        "client": (scope.get("client") or (UNKNOWN,))[0],
        "method": scope["method"] if scope["method"] in METHODS else UNKNOWN,
        "route": template(scope),
        "status": status,
        "seconds": round(seconds, 4),
        "bytes": size,
        "request_id": request_id,
    }
    if TRACE_ID in scope:
        fields["trace_id"] = scope[TRACE_ID]
    text = " ".join(map(str, fields.values()))
    log.info("%s", text, extra={"fields": fields})
