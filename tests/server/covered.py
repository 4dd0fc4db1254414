"""vLLM's application with ours over it, as it is served, but without an engine."""

import importlib
import warnings
from types import ModuleType

import httpx

from trimtab_server.settings import Settings
from trimtab_server.sizes import Bounds
from trimtab_server.state import State


def quietly(name: str) -> ModuleType:
    """A module that imports vLLM: torch deprecates what that makes it import."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


def application(flags=(), **settings):
    """For tests that need no engine: keys, CORS, limits, unknown paths."""
    with warnings.catch_warnings():  # torch deprecates what vLLM's import makes it import
        warnings.simplefilter("ignore")
        from vllm.entrypoints.launchers.app import build_app

        from trimtab_server.vllm import app, engine

    chosen = Settings(model="m", scorer={"a": {"path": "x"}}, **settings)
    args = engine.parse(chosen, list(flags))
    bounds = Bounds.of(512, 13, chosen.max_body_bytes)
    state = State(None, {}, None)
    return app.cover(build_app(args, ("generate",)), args, chosen, state, bounds, 128)


def client(app):
    """Speaks HTTP with an application in this process."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here")
