"""Pages for people: the playground at / and /playground, the API's reference at /docs.

Static files of this package, open to everyone: they hold nothing secret, and what they ask of the
server needs its key. No page loads anything from elsewhere: the reference is Swagger UI 5.35.0,
whose bundle and licence lie in reference/ as npm's swagger-ui-dist has them.
"""

import hashlib
import mimetypes
from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import Response

HERE = Path(__file__).parent
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'{images}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": (
        POLICY.format(images="")
        + "; require-trusted-types-for 'script'; trusted-types 'none'"  # text is never markup
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
# Swagger UI draws its icons from data: addresses, and makes markup of its own descriptions.
REFERENCE_HEADERS = {**HEADERS, "Content-Security-Policy": POLICY.format(images=" data:")}
KINDS = {".js": "text/javascript", ".css": "text/css", ".html": "text/html"}
"""Not those of the machine, which may name others for them."""
FASTAPI_PAGES = {"/docs", "/docs/oauth2-redirect", "/redoc"}
"""FastAPI's own pages, which load their scripts from elsewhere."""


def _files(folder: str, *addresses: str) -> dict[str, Path]:
    """The files of a folder by path: the page at all `addresses`, the others below the last."""
    index = HERE / folder / "index.html"
    files = {
        f"{addresses[-1]}/{file.name}": file
        for file in sorted((HERE / folder).iterdir())
        if file.suffix in (".css", ".js", ".svg")
    }
    return {**dict.fromkeys(addresses, index), **files}


PLAYGROUND = _files("playground", "/", "/playground")
REFERENCE = _files("reference", "/docs")
PATHS = frozenset({*PLAYGROUND, *REFERENCE})
"""Paths that need no key."""


def include(app: FastAPI) -> None:
    """Add the pages; the reference only where the application describes itself."""
    # In place: the router's list is what is served.
    app.router.routes[:] = [
        route for route in app.routes if getattr(route, "path", None) not in FASTAPI_PAGES
    ]
    router = APIRouter(include_in_schema=False)
    pages = [(path, file, HEADERS) for path, file in PLAYGROUND.items()]
    if app.openapi_url is not None:
        pages += [(path, file, REFERENCE_HEADERS) for path, file in REFERENCE.items()]
    for path, file, headers in pages:
        router.add_api_route(path, _endpoint(file, headers), methods=["GET", "HEAD"])
    app.include_router(router)


def _endpoint(file: Path, headers: dict[str, str]) -> Callable[[Request], Awaitable[Response]]:
    """A route that answers with a file, or with 304 if the client has it."""
    body = file.read_bytes()
    kind = KINDS.get(file.suffix) or mimetypes.guess_type(file.name)[0]
    sent = {**headers, "ETag": f'"{hashlib.sha256(body).hexdigest()[:32]}"'}

    async def page(request: Request) -> Response:
        if request.headers.get("if-none-match") == sent["ETag"]:
            return Response(status_code=304, headers=sent)
        return Response(body, headers=sent, media_type=kind)

    return page
