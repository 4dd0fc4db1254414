"""Admission: a limit on concurrent answers, so that admitted ones end in time.

A request beyond the limit gets 429 with `Retry-After`, before it reaches the engine or an upstream.
GETs and the routes that load scorers always pass.
"""

from collections.abc import Mapping
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from trimtab_server import metrics
from trimtab_server.bodies import PARSED
from trimtab_server.cap_settings import NARROW, Caps
from trimtab_server.caps import answers
from trimtab_server.errors import Busy, response

TURNS = 2
"""Default limit, as a multiple of the engine's slots: one half runs, the other half waits."""


class Admission:
    """ASGI middleware: counts requested answers that have not ended."""

    def __init__(self, app: ASGIApp, most: int, caps: Caps = NARROW) -> None:
        self.app = app
        self.most = most
        self.caps = caps
        self.taken = 0
        metrics.LIMIT.set(most)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it."""
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] == "/v1/scorers":
            await self.app(scope, receive, send)
            return
        fields: Mapping[str, Any] = scope.get(PARSED, {})
        requested = min(answers(fields, self.caps), self.most)
        if self.taken + requested > self.most:
            metrics.REFUSED.labels("busy").inc()
            await response(_busy(self.most))(scope, receive, send)
            return
        self._take(requested)
        try:
            await self.app(scope, receive, send)
        finally:
            self._take(-requested)

    def _take(self, answers: int) -> None:
        self.taken += answers
        metrics.IN_FLIGHT.set(self.taken)


def _busy(most: int) -> Busy:
    return Busy(
        f"the server is busy: {most} answers are in progress, which is its limit; send the request "
        "again in a moment.",
        code="busy",
    )
