"""CORS: the pages that may call the server from a browser. As in vLLM, none by default."""

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from trimtab_server.summaries import HEADER

READABLE = ("Retry-After", "X-Request-Id", HEADER)
"""Response headers that a page may read, besides those that CORS always allows."""


def let_browsers_in(app: FastAPI, origins: Sequence[str], **options: Any) -> None:
    """Add CORS as the outermost layer: preflights need no key, and pages can read our errors.

    options: those of Starlette; by default, all methods and headers, without credentials.
    """
    if origins:
        settings = {"allow_methods": ["*"], "allow_headers": ["*"], **options}
        app.add_middleware(
            CORSMiddleware, allow_origins=origins, expose_headers=READABLE, **settings
        )
