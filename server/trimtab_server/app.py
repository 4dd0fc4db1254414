"""Applications: our routes and middleware, alone or on top of vLLM's application.

A request passes, outermost first:
CORS → request id and access log → trace → API key → drain → size of the body → sizes of its parts →
admission → presets → middleware of the engine's own application (vllm/app.py) → route → engine.
"""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress

import typer
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from trimtab.engine import ScorerStatus, Version
from trimtab.errors import InvalidRequest, NotReady, TrimtabError
from trimtab_server import errors, openapi, pages, readiness, serving
from trimtab_server.access import Requests
from trimtab_server.admission import Admission
from trimtab_server.auth import ApiKeys
from trimtab_server.browsers import let_browsers_in
from trimtab_server.drain import Drain, InFlight
from trimtab_server.limits import BodyLimit
from trimtab_server.loading import Loading
from trimtab_server.presets.middleware import PresetModels
from trimtab_server.presets.store import Presets
from trimtab_server.refusals import Failures
from trimtab_server.routes import generate, models, openai, presets, scorers, status
from trimtab_server.scorer_metrics import Scrapes
from trimtab_server.scorer_warnings import prefix_warnings
from trimtab_server.settings import Settings
from trimtab_server.shutdown import Signals
from trimtab_server.sizes import Bounds, Sizes
from trimtab_server.state import State
from trimtab_server.tracing import Spans

log = logging.getLogger(__name__)


def build(state: State, settings: Settings, bounds: Bounds, most: int) -> FastAPI:
    """The application over an engine that has none of its own.

    most: maximum concurrent answers.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await state.engine.close()

    app = FastAPI(title="Trimtab", lifespan=lifespan)
    app.include_router(openai.router)
    app.include_router(models.router)
    app.add_exception_handler(HTTPException, _http_error)
    include(app, state, settings)
    cover(app, settings, bounds, most)
    let_browsers_in(app, settings.allowed_origins)
    return app


def include(app: FastAPI, state: State, settings: Settings) -> None:
    """Add the routes that every server has."""
    app.state.trimtab = state
    state.caps = settings.caps()
    app.state.trimtab_loading = None
    if settings.admin_key is not None and settings.scorer_dir is not None:
        app.state.trimtab_loading = Loading(state, settings.scorer_dir)
    state.presets = Presets.load(settings)
    for name in state.presets.check(state.scorers, state.default):
        log.warning("preset '%s' names a scorer that is not loaded yet", name)
    for routes in (generate, status, scorers, presets):
        app.include_router(routes.router, tags=[openapi.TAG])
    pages.include(app)
    openapi.describe(app)
    app.add_exception_handler(TrimtabError, errors.handle)


def cover(app: FastAPI, settings: Settings, bounds: Bounds, most: int) -> None:
    """Add the middleware that every server has."""
    app.add_middleware(PresetModels, state=app.state.trimtab)
    app.add_middleware(Scrapes, state=app.state.trimtab)
    app.add_middleware(Admission, most=most, caps=settings.caps())
    app.add_middleware(Sizes, bounds=bounds)
    app.add_middleware(BodyLimit, max_bytes=bounds.body)
    app.state.in_flight = InFlight()
    app.add_middleware(Drain, in_flight=app.state.in_flight)
    app.add_middleware(ApiKeys, **settings.keys())
    app.add_middleware(Failures)
    app.add_middleware(Spans)
    app.add_middleware(Requests, logged=settings.access_log)


def versions(statuses: list[ScorerStatus], settings: Settings) -> dict[str, Version]:
    """The first version of each scorer that the server starts with."""
    return {
        one["name"]: Version(
            one["name"],
            1,
            one["family"],
            one["reads"],
            _parts(settings, one["name"]),
            one["distributional"],
            one["whole"],
            one.get("to_go", False),
            one["ensemble"],
        )
        for one in statuses
    }


def _parts(settings: Settings, name: str) -> frozenset[str]:
    """The parts of a composite scorer."""
    spec = settings.scorer[name]
    if spec.family != "composite":
        return frozenset()
    return frozenset(part.strip().partition(":")[0] for part in spec.path.split("+"))


async def run(
    app: FastAPI,
    settings: Settings,
    listener: socket.socket,
    signals: Signals,
    died: Callable[[], bool] = lambda: False,
    config: uvicorn.Config | None = None,
) -> bool:
    """Check readiness and serve until stopped; False if the engine died.

    config: see serving.configure; its default if absent.
    """
    host, port = listener.getsockname()[:2]
    startup = asyncio.create_task(_check_and_announce(app.state.trimtab, f"http://{host}:{port}"))
    config = config or serving.configure(app, log_level=logging.getLogger().level)
    in_flight, drain = app.state.in_flight, settings.drain_timeout
    try:
        return await serving.serve(config, listener, in_flight, signals, drain, died)
    finally:
        startup.cancel()


async def _check_and_announce(state: State, address: str) -> None:
    await readiness.check_all(state)
    with suppress(NotReady):  # /ready has the reason
        for warning in prefix_warnings(await state.statuses()):
            log.warning("%s", warning)
    healthy = all(state.complaint(name) is None for name in state.scorers)
    word = "ready" if healthy and state.engine.problem() is None else "NOT READY"
    steered = f"steered by {', '.join(state.scorers)}" if state.scorers else "without scorers"
    typer.echo(f"{word}: {state.model} at {address}, {steered}")


async def _http_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    headers: Mapping[str, str] | None = error.headers
    body = InvalidRequest(f"{error.detail}.".lower()).body()
    return JSONResponse(body, error.status_code, headers)
