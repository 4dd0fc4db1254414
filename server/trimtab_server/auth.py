"""API keys: one ASGI middleware, outermost, that guards every route but /health.

An admin key opens every route; those that change what is served (`require_admin`) it alone opens.
"""

import hashlib
import hmac
from collections.abc import Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from trimtab_server.errors import Forbidden, Unauthorized, response

OPEN = frozenset({"/health"})
HOLDER = "trimtab_key"
"""Entry of a request's scope: whose key came with it, "admin", "user", or None without one."""


def digest(key: bytes) -> bytes:
    """SHA-256 of a key; comparing digests hides both the length and the content of the keys."""
    return hashlib.sha256(key).digest()


class ApiKeys:
    """ASGI middleware: `Authorization: Bearer KEY` with one of the keys, or 401.

    Every method, mount and websocket is guarded; what is open is named, by exact path. Without
    `keys` all is open but what an admin alone may do.
    """

    def __init__(self, app: ASGIApp, keys: Iterable[str], admin_key: str | None = None) -> None:
        self.app = app
        holders = [(key, "user") for key in keys]
        self.open = not holders
        holders += [] if admin_key is None else [(admin_key, "admin")]
        self.digests = [(digest(key.encode()), holder) for key, holder in holders]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        holder = self._holder(scope)
        if self.open or holder is not None or scope["path"] in OPEN:
            await self.app({**scope, HOLDER: holder}, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": "no valid API key"})
        else:
            await response(_no_key())(scope, receive, send)

    def _holder(self, scope: Scope) -> str | None:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(given) != 1:
            return None
        scheme, _, key = given[0].partition(b" ")
        sent = digest(key.strip())
        # Every key is compared, so that time does not tell which one was near.
        matches = [who for known, who in self.digests if hmac.compare_digest(sent, known)]
        return matches[-1] if matches and scheme.lower() == b"bearer" else None


def require_admin(scope: Scope) -> None:
    """Refuse a request that does not carry the admin key.

    Raises:
        Unauthorized: it carries no key that is known here.
        Forbidden: it carries a user's.
    """
    holder = scope.get(HOLDER)
    if holder is None:
        raise _no_key()
    if holder != "admin":
        raise Forbidden("this route needs the admin key; the key that was sent is a user's.")


def _no_key() -> Unauthorized:
    return Unauthorized(
        "a valid API key is needed; send the header 'Authorization: Bearer KEY'.",
        code="invalid_api_key",
    )
