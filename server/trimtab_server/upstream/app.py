"""The application of `trimtab serve --upstream`: our routes over an upstream, without vLLM."""

import socket

import httpx
from fastapi import FastAPI

from trimtab.config import GuidanceConfig
from trimtab.description import describe
from trimtab.guide import Guide
from trimtab.loading import load_scorers
from trimtab_server import app as shared
from trimtab_server.admission import TURNS
from trimtab_server.errors import StartError
from trimtab_server.settings import Settings
from trimtab_server.shutdown import Signals
from trimtab_server.sizes import Bounds
from trimtab_server.state import State
from trimtab_server.upstream.client import Client
from trimtab_server.upstream.engine import UpstreamEngine
from trimtab_server.upstream.ids import ById
from trimtab_server.upstream.naming import Naming
from trimtab_server.upstream.texts import ByText

UNBOUNDED = 2**20
"""Maximum tokens of a prefix without a tokenizer; the scorer's own window applies."""
UNCOUNTED = 2**17
"""Maximum tokens of a prompt without a tokenizer and without --upstream-length."""


def build(settings: Settings, transport: httpx.AsyncBaseTransport | None = None) -> FastAPI:
    """The application; `transport` replaces the upstream in tests.

    Raises:
        StartError, ScorerLoadError: the tokenizer or a scorer cannot be loaded, or cannot serve.
    """
    if not settings.scorer:
        raise StartError("give at least one scorer: --scorer NAME=PATH.")
    naming: Naming = ById(settings) if settings.tokenizer else ByText(settings)
    guide = _guide(settings, naming)
    engine = UpstreamEngine(guide, naming, Client(settings, transport), settings)
    scorers = shared.versions(describe(guide), settings)
    state = State(engine, scorers, settings.default_scorer or None)
    most = settings.max_in_flight or TURNS * settings.upstream_concurrency
    return shared.build(state, settings, _bounds(settings, naming), most)


def _bounds(settings: Settings, naming: Naming) -> Bounds:
    known = int(naming.length) if naming.closed else settings.upstream_length or UNCOUNTED
    return Bounds.of(known, naming.longest, settings.max_body_bytes)


def _guide(settings: Settings, naming: Naming) -> Guide:
    known = naming.closed
    config = GuidanceConfig.parse({"trimtab": settings.guidance()})
    scorers = load_scorers(
        config,
        max_length=int(naming.length) if known else UNBOUNDED,
        vocab_size=naming.columns if known else 1,
        tokenizer=naming.decoder,
    )
    for name, scorer in scorers.items():
        if not known and scorer.reads == "tokens":
            raise StartError(
                f"scorer '{name}' reads token ids of its base, which are not known without a "
                "tokenizer; give --tokenizer, or a scorer that reads text: family=text, a network "
                "with a tokenizer of its own, or family=function with reads=text."
            )
    return Guide(scorers, config.scorer_timeout)


async def serve(settings: Settings, listener: socket.socket, signals: Signals) -> bool:
    """Serve until stopped."""
    return await shared.run(build(settings), settings, listener, signals)
