"""CORS: which pages a browser lets call the server. As in vLLM, none without a flag."""

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

READABLE = ("Retry-After", "X-Request-Id")
"""Headers of an answer that a page may read, beside those that any may."""


def let_browsers_in(app: FastAPI, origins: Sequence[str], **options: Any) -> None:
    """Put CORS around all that `app` has: preflights need no key, and refusals can be read.

    options: Starlette's, by default every method and header, without credentials.
    """
    if origins:
        given = {"allow_methods": ["*"], "allow_headers": ["*"], **options}
        app.add_middleware(CORSMiddleware, allow_origins=origins, expose_headers=READABLE, **given)
