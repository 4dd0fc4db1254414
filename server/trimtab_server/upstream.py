"""The application of `trimtab serve --upstream`: our routes over an upstream, without vLLM."""

import socket

import httpx
from fastapi import FastAPI
from prometheus_client import Counter

from trimtab.adapters.openai import load_engine
from trimtab.adapters.openai.engine import UpstreamEngine
from trimtab.config import GuidanceConfig
from trimtab.description import describe
from trimtab.errors import StartError
from trimtab_server import app as shared
from trimtab_server import metrics, tracing
from trimtab_server.admission import TURNS
from trimtab_server.forwarding import forwarded
from trimtab_server.routes import forwarded as routes
from trimtab_server.settings import Settings
from trimtab_server.shutdown import Signals
from trimtab_server.sizes import Bounds
from trimtab_server.state import State

CALLS = Counter("trimtab_upstream_calls", "Calls to the upstream, by outcome", ["outcome"])
for _outcome in ("ok", "limited", "failed", "refused", "timeout", "connection", "unusable"):
    CALLS.labels(_outcome)  # so that each series exists from the start
UNCOUNTED = 2**17
"""Maximum tokens of a prompt without a tokenizer and without --upstream-length."""


def build(settings: Settings, transport: httpx.AsyncBaseTransport | None = None) -> FastAPI:
    """The application; `transport` replaces the upstream in tests.

    Raises:
        StartError, ScorerLoadError: the tokenizer or a scorer cannot be loaded, or cannot serve.
    """
    if not settings.scorer:
        raise StartError("give at least one scorer: --scorer NAME=PATH.")
    engine = load_engine(
        settings.upstream_config(),
        GuidanceConfig.parse({"trimtab": settings.guidance()}),
        transport=transport,
        on_call=lambda outcome: CALLS.labels(outcome).inc(),
        on_record=metrics.observe,
    )
    scorers = shared.versions(describe(engine.guide), settings)
    state = State(engine, scorers, settings.default_scorer or None, forward=forwarded)
    most = settings.max_in_flight or TURNS * settings.upstream_concurrency
    app = shared.build(state, settings, _bounds(settings, engine), most)
    app.include_router(routes.router)
    return app


def _bounds(settings: Settings, engine: UpstreamEngine) -> Bounds:
    naming = engine.naming
    tokens = int(naming.length) if naming.closed else settings.upstream_length or UNCOUNTED
    return Bounds.of(tokens, naming.longest, settings.max_body_bytes, caps=settings.caps())


async def serve(settings: Settings, listener: socket.socket, signals: Signals) -> bool:
    """Serve until stopped."""
    if settings.otlp_traces_endpoint is not None:
        tracing.export(settings.otlp_traces_endpoint)
    return await shared.run(build(settings), settings, listener, signals)
