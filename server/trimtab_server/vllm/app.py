"""The application: vLLM's own, with our routes, middleware and error handler over it."""

import argparse
import asyncio
import logging
import socket
from collections.abc import Mapping
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import typer
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.middleware.cors import CORSMiddleware
from vllm.engine.protocol import EngineClient
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.utils.ssl import SSLCertRefresher

from trimtab.adapters.vllm.ranks import first_answer
from trimtab.errors import TrimtabError
from trimtab_server import errors, refusals, serving
from trimtab_server.admission import TURNS, Admission
from trimtab_server.auth import ApiKeys
from trimtab_server.browsers import let_browsers_in
from trimtab_server.drain import Drain, InFlight
from trimtab_server.limits import BodyLimit
from trimtab_server.scorer_list import Version
from trimtab_server.scorer_warnings import doubts
from trimtab_server.settings import Settings
from trimtab_server.shutdown import Signals
from trimtab_server.sizes import Bounds, Sizes
from trimtab_server.vllm import generate, readiness, rpc, status
from trimtab_server.vllm import scorers as scorer_routes
from trimtab_server.vllm.loading import Loading
from trimtab_server.vllm.middleware import Guidance
from trimtab_server.vllm.state import State
from trimtab_server.wording import learn

log = logging.getLogger(__name__)

UVICORN = (
    *("ssl_keyfile", "ssl_certfile", "ssl_ca_certs", "ssl_cert_reqs", "ssl_ciphers"),
    "h11_max_incomplete_event_size",
)
"""vLLM's arguments that are uvicorn's."""
START_SECONDS = 600.0
"""What vLLM's application may take to begin, with the engine's help."""


async def build(engine: EngineClient, args: argparse.Namespace, settings: Settings) -> FastAPI:
    """vLLM's application around `engine`, and ours over it.

    A request passes, outermost first:
    CORS → API key → drain → the body's size → its parts' → admission → guidance → vLLM.

    Raises:
        NotReady: the engine dies meanwhile.
    """
    tasks = await rpc.within(engine, engine.get_supported_tasks(), START_SECONDS)
    app: FastAPI = build_app(args, tasks, engine.model_config)
    await rpc.within(engine, init_app_state(engine, app.state, args, tasks), START_SECONDS)
    default = settings.default_scorer or None
    scorers = {
        found["name"]: Version(
            found["name"],
            1,
            found["family"],
            found["reads"],
            _parts(settings, found["name"]),
            found["distributional"],
        )
        for found in first_answer(await rpc.call(engine, "trimtab_scorers"))
    }
    online = app.state.online_renderer
    own = getattr(online.renderer.tokenizer, "chat_template", None)
    learn(str(online.chat_template or own))
    name = (args.served_model_name or [args.model])[0]
    state = State(engine, online, name, scorers, default)
    app.state.trimtab = state
    app.state.trimtab_loading = None
    if settings.admin_key is not None and settings.scorer_dir is not None:
        app.state.trimtab_loading = Loading(state, settings.scorer_dir)
    places = TURNS * engine.vllm_config.scheduler_config.max_num_seqs
    bounds = _bounds(engine, settings.max_body_bytes)
    return cover(app, args, settings, scorers, bounds, settings.max_in_flight or places)


def cover(
    app: FastAPI,
    args: argparse.Namespace,
    settings: Settings,
    scorers: Mapping[str, Version],
    bounds: Bounds,
    most: int,
) -> FastAPI:
    """Our routes, middleware and error handler over vLLM's."""
    app.include_router(generate.router)
    app.include_router(status.router)
    app.include_router(scorer_routes.router)
    app.add_exception_handler(TrimtabError, errors.handle)
    app.add_exception_handler(RequestValidationError, refusals.handle_invalid)
    # vLLM has built its stack of middleware already; with ours, it is built anew when serving.
    app.middleware_stack = None
    app.add_middleware(refusals.Plain)
    app.add_middleware(Guidance, scorers=scorers, default=settings.default_scorer or None)
    app.add_middleware(Admission, most=most)
    app.add_middleware(Sizes, bounds=bounds)
    app.add_middleware(BodyLimit, max_bytes=bounds.body)
    app.state.in_flight = InFlight()
    app.add_middleware(Drain, in_flight=app.state.in_flight)
    app.add_middleware(ApiKeys, **settings.keys())
    app.add_middleware(refusals.Failures)
    # vLLM's, which lets browsers in, moves to the outside: it answers before a key is looked for,
    # and browsers may read our refusals.
    layers: list[Any] = app.user_middleware
    app.user_middleware = [layer for layer in layers if layer.cls is not CORSMiddleware]
    let_browsers_in(
        app,
        args.allowed_origins,
        allow_credentials=args.allow_credentials,
        allow_methods=args.allowed_methods,
        allow_headers=args.allowed_headers,
    )
    return app


def _bounds(engine: EngineClient, max_body_bytes: int) -> Bounds:
    model, tokenizer = engine.model_config, engine.get_tokenizer()
    longest = tokenizer.max_chars_per_token if tokenizer is not None else 1
    media = model.is_multimodal_model or model.enable_prompt_embeds
    return Bounds.of(model.max_model_len, longest, max_body_bytes, media)


def _parts(settings: Settings, name: str) -> frozenset[str]:
    """The scorers that a composite is made of."""
    spec = settings.scorer[name]
    if spec.family != "composite":
        return frozenset()
    return frozenset(part.strip().partition(":")[0] for part in spec.path.split("+"))


async def serve(
    app: FastAPI,
    args: argparse.Namespace,
    settings: Settings,
    listener: socket.socket,
    signals: Signals,
) -> bool:
    """Serve until stopped; the canary sings meanwhile. False if the engine died of itself."""
    state: State = app.state.trimtab
    host, port = listener.getsockname()[:2]
    # A handler of vLLM's for a dead engine stops what it finds here; ours is watched (serving.py).
    app.state.server = SimpleNamespace(should_exit=False)
    singing = asyncio.create_task(_begin(state, f"http://{host}:{port}"))
    options = {name: getattr(args, name) for name in UVICORN}
    config = serving.configure(app, log_level=logging.getLogger().level, **options)
    refresher = (
        SSLCertRefresher(config.ssl, args.ssl_keyfile, args.ssl_certfile, args.ssl_ca_certs)
        if args.enable_ssl_refresh
        else None
    )
    try:
        return await serving.serve(
            config,
            listener,
            app.state.in_flight,
            signals,
            settings.drain_timeout,
            lambda: bool(state.engine.errored),
        )
    finally:
        singing.cancel()
        if refresher is not None:
            refresher.stop()


async def _begin(state: State, address: str) -> None:
    await readiness.sing(state)
    with suppress(errors.NotReady):  # /ready will tell
        for doubt in doubts(await status.ask(state)):
            log.warning("%s", doubt)
    status_word = (
        "ready" if all(state.complaint(name) is None for name in state.scorers) else "NOT READY"
    )
    typer.echo(f"{status_word}: {state.model} at {address}, steered by {', '.join(state.scorers)}")
