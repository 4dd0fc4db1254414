"""Routes that a user may call. Every other route of an application needs the admin key.

This is an allow list: a route that a later vLLM adds is refused until it is listed here. The vLLM
routes left out affect other users (sleep, adapters, weights, scaling, aborting by id), run code
(collective_rpc), or reveal the machine (server_info).
"""

import re

from starlette.routing import Match, compile_path
from starlette.types import Scope

from trimtab_server import pages

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""Methods that may reach an application. Its metrics have one series per method."""
OPEN = frozenset({"/health", "/ready"}) | pages.PATHS
"""Paths that need no key."""
KNOWN = "trimtab_known"
"""Scope entry of a request to an open path: whether whoever sent it may use the server."""

GET_PATHS = (
    "/health",
    "/ready",
    "/metrics",
    "/version",
    "/load",
    "/ping",
    "/v1/models",
    "/v1/models/{name:path}",
    "/v1/scorers",
    "/v1/responses/{id}",
    "/tokenizer_info",
    "/openapi.json",
    "/static/{file:path}",
)
POST_PATHS = (
    "/generate",
    "/v1/completions",
    "/v1/completions/render",
    "/v1/completions/derender",
    "/v1/chat/completions",
    "/v1/chat/completions/batch",
    "/v1/chat/completions/render",
    "/v1/chat/completions/derender",
    "/v1/responses",
    "/v1/responses/render",
    "/v1/responses/{id}/cancel",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/messages/render",
    "/v1/systemone",
    "/generative_scoring",
    "/inference/v1/generate",
    "/invocations",
    "/ping",
    "/tokenize",
    "/detokenize",
)


def _pattern(paths: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(compile_path(path)[0].pattern for path in paths))


USER = {"GET": _pattern(GET_PATHS), "HEAD": _pattern(GET_PATHS), "POST": _pattern(POST_PATHS)}


def route_path(scope: Scope) -> str:
    """The path that is routed: without the root path that a proxy adds."""
    path, root = scope["path"], scope.get("root_path", "")
    return path[len(root) :] if root and path.startswith(root + "/") else path


def admin_alone(scope: Scope) -> bool:
    """Whether the application has a route for this request that is not open to users."""
    pattern = USER.get(scope.get("method", ""))
    path = route_path(scope)
    # A path with a trailing slash is redirected to the path without it.
    if pattern is not None and pattern.fullmatch(path.removesuffix("/")):
        return False
    return any(route.matches(scope)[0] == Match.FULL for route in scope["app"].routes)
