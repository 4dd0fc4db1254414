"""Admission: at most so many answers are on their way at once, so that those end in time.

What comes beyond them is refused at once, before the engine or an upstream hears of it, and may be
sent again after `Retry-After`. GETs always pass, and so do the routes that load scorers.
"""

from collections.abc import Mapping
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from trimtab_server import metrics
from trimtab_server.caps import answers
from trimtab_server.errors import Busy, response
from trimtab_server.strict_json import PARSED

TURNS = 2
"""How many times over an engine's places may be taken: one half runs, the other waits."""


class Admission:
    """ASGI middleware: counts answers that are asked for and have not ended."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app = app
        self.most = most
        self.taken = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it."""
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] == "/v1/scorers":
            await self.app(scope, receive, send)
            return
        fields: Mapping[str, Any] = scope.get(PARSED, {})
        wanted = min(answers(fields), self.most)
        if self.taken + wanted > self.most:
            metrics.REFUSED.labels("busy").inc()
            await response(_busy(self.most))(scope, receive, send)
            return
        self.taken += wanted
        try:
            await self.app(scope, receive, send)
        finally:
            self.taken -= wanted


def _busy(most: int) -> Busy:
    return Busy(
        f"the server is busy: {most} answers are on their way, the most it takes at once; send the "
        "request again in a moment.",
        code="busy",
    )
