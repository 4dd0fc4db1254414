"""Error responses, ours and vLLM's: our shape, bounded, and without the client's input.

Failures is the outermost layer: it logs an uncaught exception and answers 500.
Plain wraps vLLM: it rewrites vLLM's errors, as answers or stream events, in known words only
(wording.py).
"""

import json
import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trimtab.errors import InvalidRequest, TrimtabError
from trimtab_server import shapes
from trimtab_server.allowed import route_path
from trimtab_server.errors import OWN_ERROR, handle, response
from trimtab_server.wording import field, plain

log = logging.getLogger(__name__)

FAILED = "the server failed while it answered this request; its log says where."
TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}
"""Error types by status; all others are invalid_request_error (4xx) or internal_error (5xx)."""
PASSED_ON = {501, 503}
"""Server-side statuses (5xx) whose message from vLLM is passed on."""
OURS = "/generate"
"""The route whose streams contain our own errors."""


class Failures:
    """ASGI middleware: turns an exception of the application into an answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        begun = False

        async def note(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, receive, note)
        except ClientDisconnect:
            return  # nobody reads an answer
        except Exception as error:
            if scope["type"] != "http":
                raise
            log.error("a request failed", exc_info=error)
            if not begun:
                await response(TrimtabError(FAILED))(scope, receive, send)


class Plain:
    """ASGI middleware: rewrites the errors of vLLM's routes."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        answer = _Answer(scope, send)
        await self.app(scope, receive, answer.send if scope["type"] == "http" else send)


async def handle_invalid(request: Request, error: Exception) -> JSONResponse:
    """Exception handler for bodies that fail the validation of a vLLM route."""
    assert isinstance(error, RequestValidationError)
    problems, names = [], []
    for detail in error.errors()[:3]:
        if not isinstance(detail, Mapping):  # one of vLLM's own, such as for a media type
            problems.append(plain(str(detail)))
            continue
        place = detail.get("loc", ())[1:2]
        name = field(str(place[0])) if place else None
        names.append(name)
        message = plain(str(detail.get("msg", "")))
        problems.append(f"{name}: {message}" if name else message)
    text = "; ".join(dict.fromkeys(problems)).rstrip(".")
    refused = InvalidRequest(f"Invalid request: {text}.", param=next(iter(names), None))
    return await handle(request, refused)


class _Answer:
    """One answer of vLLM's application, while it is sent."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.scope = scope
        self.path = route_path(scope)
        self.forward = send
        self.start: Message | None = None  # of an error whose body is incomplete
        self.body = b""
        self.streams = False

    async def send(self, message: Message) -> None:
        """Forward a message, rewritten if it is an error."""
        if message["type"] == "http.response.start":
            kind = dict(message["headers"]).get(b"content-type", b"")
            self.streams = kind.startswith(b"text/event-stream") and self.path != OURS
            if message["status"] >= 400 and not self.scope.get(OWN_ERROR):
                self.start = message
                return
        elif self.start is not None:
            await self._whole(self.start, message)
            return
        elif self.streams and b'"error":' in message.get("body", b""):
            # vLLM sends each event as one message. Generated text contains this only escaped.
            events = message["body"].split(b"\n\n")
            message = {**message, "body": b"\n\n".join(self._event(event) for event in events)}
        await self.forward(message)

    async def _whole(self, start: Message, message: Message) -> None:
        self.body += message.get("body", b"")
        if message.get("more_body", False):
            return
        content = json.dumps(self._refusal(start["status"], _read(self.body))).encode()
        dropped = (b"content-length", b"content-type")
        headers = [pair for pair in start["headers"] if pair[0].lower() not in dropped]
        headers.append((b"content-type", b"application/json"))
        headers.append((b"content-length", str(len(content)).encode()))
        await self.forward({**start, "headers": headers})
        await self.forward({"type": "http.response.body", "body": content})

    def _refusal(self, status: int, error: Mapping[str, Any]) -> dict[str, Any]:
        if status >= 500 and status not in PASSED_ON:
            text = FAILED
        else:
            message = plain(str(error.get("message") or error.get("detail") or ""))
            text = message or f"{HTTPStatus(status).phrase.lower()}."
        param = error.get("param")
        refusal = TrimtabError(text, param=field(param) if isinstance(param, str) else None)
        answer = shapes.body(self.path, refusal)
        kind = "invalid_request_error" if status < 500 else "internal_error"
        answer["error"]["type"] = TYPES.get(status, kind)
        return answer

    def _event(self, event: bytes) -> bytes:
        head, separator, data = event.partition(b"data: ")
        try:
            fields = json.loads(data)
        except ValueError:
            return event
        owner = fields.get("response") if isinstance(fields.get("response"), dict) else fields
        error = owner.get("error")
        if not isinstance(error, dict):
            return event
        code = error.get("code")
        status = code if isinstance(code, int) and code in list(HTTPStatus) else 500
        owner["error"] = self._refusal(status, error)["error"]
        return head + separator + json.dumps(fields, ensure_ascii=False).encode()


def _read(body: bytes) -> Mapping[str, Any]:
    """The error in the body of an answer, in any of vLLM's shapes."""
    try:
        answer = json.loads(body)
    except ValueError:
        return {}
    error = answer.get("error", answer) if isinstance(answer, dict) else {}
    return error if isinstance(error, dict) else {"message": error}
