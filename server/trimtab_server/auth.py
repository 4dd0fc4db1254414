"""API keys: one ASGI middleware that guards every route but /health, /ready and the pages.

A user's key opens the user routes (allowed.py); the admin key opens every route. Without users'
keys, every client is a user.
"""

import hashlib
import hmac
from collections.abc import Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from trimtab.errors import TrimtabError
from trimtab_server.allowed import KNOWN, METHODS, OPEN, admin_alone, route_path
from trimtab_server.errors import Forbidden, Unauthorized, UnknownMethod, response

KEY = "trimtab.key"
"""Where a request's scope has the digest of its key, if that is known."""


def digest(key: bytes) -> bytes:
    """SHA-256 of a key. Comparing digests hides the length and the content of the keys."""
    return hashlib.sha256(key).digest()


class ApiKeys:
    """ASGI middleware: `Authorization: Bearer KEY` or `x-api-key: KEY` with a known key, or 401.

    Anthropic's clients may send both, with different keys; one of them must be known.
    Every method, mount and websocket is guarded; open paths are listed exactly.
    """

    def __init__(self, app: ASGIApp, keys: Iterable[str], admin_key: str | None = None) -> None:
        self.app = app
        holders = [(key, "user") for key in keys]
        self.guarded = bool(holders)
        self.has_admin = admin_key is not None
        holders += [] if admin_key is None else [(admin_key, "admin")]
        self.digests = [(digest(key.encode()), holder) for key, holder in holders]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        refusal = None if scope["type"] == "lifespan" else self._refusal(scope)
        if refusal is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": "no valid API key"})
        else:
            await response(refusal)(scope, receive, send)

    def _refusal(self, scope: Scope) -> TrimtabError | None:
        """The error for a request that may not pass; None if it may."""
        if scope["type"] == "http" and scope["method"] not in METHODS:
            return UnknownMethod("no route of this server has this method.")
        holder = self._holder(scope)
        known = holder is not None or not self.guarded
        if route_path(scope) in OPEN:
            scope[KNOWN] = known
            return None
        if known and (holder == "admin" or not admin_alone(scope)):
            return None
        if holder is None and (self.guarded or self.has_admin):
            return Unauthorized(
                "a valid API key is needed; send the header 'Authorization: Bearer KEY'.",
                code="invalid_api_key",
            )
        if not self.has_admin:
            return Forbidden(
                "this route is for operators alone; to use it, start the server with --admin-key."
            )
        return Forbidden("this route needs the admin key; the key that was sent is a user's.")

    def _holder(self, scope: Scope) -> str | None:
        """The owner of a request's key, "admin" or "user"; None if it has no known key.

        The key's digest is put into the scope.
        """
        # Compare every key, so that the time reveals nothing about the match.
        matches = {
            owner: received
            for received in map(digest, sent_keys(scope))
            for known, owner in self.digests
            if hmac.compare_digest(received, known)
        }
        # Of a user's and an admin's key together, the one that opens fewer routes.
        owner = "user" if "user" in matches else next(iter(matches), None)
        if owner is not None:
            scope[KEY] = matches[owner]
        return owner


def sent_keys(scope: Scope) -> list[bytes]:
    """The keys that a request sends, at most one in each header; none if a header is repeated."""
    sent = []
    for name, value in scope["headers"]:
        if name == b"authorization":
            scheme, _, key = value.partition(b" ")
            sent.append((name, key.strip() if scheme.lower() == b"bearer" else b""))
        elif name == b"x-api-key":
            sent.append((name, value.strip()))
    repeated = len({name for name, _ in sent}) != len(sent)
    return [] if repeated else [key for _, key in sent]
