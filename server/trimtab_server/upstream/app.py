"""The application of `trimtab serve --upstream`: our own routes over a decoder, without vLLM.

A request passes, outermost first:
CORS → API key → drain → the body's size → its parts' → admission → its route → the decode loop.
"""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import typer
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from trimtab.config import GuidanceConfig
from trimtab.errors import TrimtabError
from trimtab.guide import Guide
from trimtab.loading import load_scorers
from trimtab_server import errors, serving
from trimtab_server.admission import TURNS, Admission
from trimtab_server.auth import ApiKeys
from trimtab_server.browsers import let_browsers_in
from trimtab_server.drain import Drain, InFlight
from trimtab_server.errors import InvalidRequest, NotReady, StartError
from trimtab_server.limits import BodyLimit
from trimtab_server.refusals import Failures
from trimtab_server.scorer_list import listed
from trimtab_server.scorer_warnings import doubts
from trimtab_server.settings import Settings
from trimtab_server.shutdown import Signals
from trimtab_server.sizes import Bounds, Sizes
from trimtab_server.upstream import routes
from trimtab_server.upstream.client import Client
from trimtab_server.upstream.ids import ById
from trimtab_server.upstream.naming import Naming
from trimtab_server.upstream.state import UpstreamState
from trimtab_server.upstream.steps import UpstreamDecoder
from trimtab_server.upstream.texts import ByText

UNBOUNDED = 2**20
"""Tokens of a prefix that nobody counts; a scorer's own window is what bounds it."""
UNCOUNTED = 2**17
"""Tokens that a prompt may have where nobody can count them, nor says how many there may be."""

ANSWER_SECONDS = 5.0
"""What the scorers' thread may take to tell how they fare."""

log = logging.getLogger(__name__)


def build(settings: Settings, transport: httpx.AsyncBaseTransport | None = None) -> FastAPI:
    """The application; `transport` stands for the upstream in tests.

    Raises:
        StartError, ScorerLoadError: the tokenizer or a scorer cannot be loaded, or cannot serve.
    """
    if not settings.scorer:
        raise StartError("give at least one scorer: --scorer NAME=PATH.")
    naming: Naming = ById(settings) if settings.tokenizer else ByText(settings)
    decoder = UpstreamDecoder(
        _guide(settings, naming), naming, Client(settings, transport), settings
    )
    state = UpstreamState(decoder, str(settings.upstream_model), settings.default_scorer or None)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await decoder.close()

    app = FastAPI(title="Trimtab", lifespan=lifespan)
    app.state.upstream = state
    app.include_router(routes.router)
    app.get("/health")(_health)
    app.get("/ready")(_ready)
    app.get("/metrics")(_metrics)
    app.get("/v1/models")(_models)
    app.get("/v1/scorers")(_scorers)
    app.add_exception_handler(TrimtabError, errors.handle)
    app.add_exception_handler(HTTPException, _http_error)
    bounds = _bounds(settings, naming)
    app.add_middleware(
        Admission, most=settings.max_in_flight or TURNS * settings.upstream_concurrency
    )
    app.add_middleware(Sizes, bounds=bounds)
    app.add_middleware(BodyLimit, max_bytes=bounds.body)
    app.state.in_flight = InFlight()
    app.add_middleware(Drain, in_flight=app.state.in_flight)
    app.add_middleware(ApiKeys, **settings.keys())
    app.add_middleware(Failures)
    let_browsers_in(app, settings.allowed_origins)
    return app


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


def serve(settings: Settings, listener: socket.socket, signals: Signals) -> None:
    """Serve until stopped; the canary sings meanwhile."""
    asyncio.run(_run(build(settings), settings, listener, signals))


async def _run(app: FastAPI, settings: Settings, listener: socket.socket, signals: Signals) -> None:
    config = serving.configure(app, log_level=settings.log_level)
    host, port = listener.getsockname()[:2]
    begin = asyncio.create_task(_begin(app.state.upstream, f"http://{host}:{port}"))
    in_flight = app.state.in_flight
    await serving.serve(config, listener, in_flight, signals, settings.drain_timeout)
    begin.cancel()


async def _begin(state: UpstreamState, address: str) -> None:
    await state.sing()
    for doubt in doubts(await state.decoder.described()):
        log.warning("%s", doubt)
    status = "ready" if state.well else "NOT READY"
    typer.echo(f"{status}: {state.model} at {address}, steered by {', '.join(state.scorers)}")


async def _health() -> dict[str, str]:
    return {"status": "ok"}


async def _ready(request: Request) -> dict[str, str]:
    state: UpstreamState = request.app.state.upstream
    if state.sung and not state.well and not await state.again.done(state.sing):
        raise NotReady("not ready: scorers and upstream are being asked again.")
    if not state.well:
        wrong = {name: state.complaint(name) for name in state.scorers}
        reasons = [f"scorer '{name}' {what}" for name, what in wrong.items() if what is not None]
        raise NotReady(f"not ready: {'; '.join(reasons) or 'the upstream fails'}.")
    return {"status": "ready"}


async def _metrics() -> Response:
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


async def _models(request: Request) -> dict[str, Any]:
    name = request.app.state.upstream.model
    model = {"id": name, "object": "model", "created": 0, "owned_by": "upstream"}
    return {"object": "list", "data": [model]}


async def _scorers(request: Request) -> dict[str, Any]:
    state: UpstreamState = request.app.state.upstream
    default = state.default or dict.fromkeys(state.scorers, 1.0)
    try:
        found = await asyncio.wait_for(state.decoder.described(), ANSWER_SECONDS)
    except TimeoutError:
        raise NotReady("the scorers do not answer: one of them takes long.") from None
    return listed(found, state.complaint, default)


async def _http_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    body = InvalidRequest(f"{error.detail}.".lower()).body()
    return JSONResponse(body, error.status_code, error.headers)
