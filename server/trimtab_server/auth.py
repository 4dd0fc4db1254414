"""API keys: one ASGI middleware, outermost, that guards every route but /health."""

import hashlib
import hmac
from collections.abc import Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from trimtab_server.errors import Unauthorized, response

OPEN = frozenset({"/health"})


def digest(key: bytes) -> bytes:
    """SHA-256 of a key; comparing digests hides both the length and the content of the keys."""
    return hashlib.sha256(key).digest()


class ApiKeys:
    """ASGI middleware: `Authorization: Bearer KEY` with one of the keys, or 401.

    Every method, mount and websocket is guarded; what is open is named, by exact path.
    """

    def __init__(self, app: ASGIApp, keys: Iterable[str]) -> None:
        self.app = app
        self.digests = [digest(key.encode()) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "lifespan" or scope["path"] in OPEN or self._allowed(scope):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": "no valid API key"})
        else:
            error = Unauthorized(
                "a valid API key is needed; send the header 'Authorization: Bearer KEY'.",
                code="invalid_api_key",
            )
            await response(error)(scope, receive, send)

    def _allowed(self, scope: Scope) -> bool:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(given) != 1:
            return False
        scheme, _, key = given[0].partition(b" ")
        sent = digest(key.strip())
        # Every key is compared, so that time does not tell which one was near.
        matches = [hmac.compare_digest(sent, known) for known in self.digests]
        return scheme.lower() == b"bearer" and any(matches)
