"""The application over vLLM: vLLM's own plus our routes, middleware and error handler."""

import argparse
import logging
import socket
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.middleware.cors import CORSMiddleware
from vllm.engine.protocol import EngineClient
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.utils.ssl import SSLCertRefresher

from trimtab.engine import Version
from trimtab_server import app as shared
from trimtab_server import refusals, serving
from trimtab_server.admission import TURNS
from trimtab_server.browsers import let_browsers_in
from trimtab_server.settings import Settings
from trimtab_server.shutdown import Signals
from trimtab_server.sizes import Bounds
from trimtab_server.state import State
from trimtab_server.vllm import rpc
from trimtab_server.vllm.adapter import VllmEngine
from trimtab_server.vllm.middleware import GuidanceMiddleware
from trimtab_server.wording import learn

UVICORN = (
    *("ssl_keyfile", "ssl_certfile", "ssl_ca_certs", "ssl_cert_reqs", "ssl_ciphers"),
    "h11_max_incomplete_event_size",
)
"""vLLM's arguments that are passed to uvicorn."""
START_SECONDS = 600.0
"""Maximum time for vLLM's application to start."""


async def build(client: EngineClient, args: argparse.Namespace, settings: Settings) -> FastAPI:
    """vLLM's application for its engine, with our parts added.

    Raises:
        NotReady: the engine dies during the start.
    """
    tasks = await rpc.within(client, client.get_supported_tasks(), START_SECONDS)
    app: FastAPI = build_app(args, tasks, client.model_config)
    await rpc.within(client, init_app_state(client, app.state, args, tasks), START_SECONDS)
    online = app.state.online_renderer
    own = getattr(online.renderer.tokenizer, "chat_template", None)
    learn(str(online.chat_template or own))
    engine = VllmEngine(client, online, (args.served_model_name or [args.model])[0])
    scorers = shared.versions(await engine.scorers(START_SECONDS), settings)
    slots = TURNS * client.vllm_config.scheduler_config.max_num_seqs
    bounds = _bounds(client, settings)
    state = State(engine, scorers, settings.default_scorer or None)
    return cover(app, args, settings, state, bounds, settings.max_in_flight or slots)


def cover(
    app: FastAPI,
    args: argparse.Namespace,
    settings: Settings,
    state: State,
    bounds: Bounds,
    most: int,
) -> FastAPI:
    """Add our routes, middleware and error handler to vLLM's application."""
    shared.include(app, state, settings)
    app.add_exception_handler(RequestValidationError, refusals.handle_invalid)
    # vLLM has already built its middleware stack; None rebuilds it with ours when serving.
    app.middleware_stack = None
    app.add_middleware(refusals.Plain)
    served: Mapping[str, Version] = state.scorers
    app.add_middleware(GuidanceMiddleware, scorers=served, default=state.default, caps=state.caps)
    shared.cover(app, settings, bounds, most)
    # vLLM's CORS layer is replaced by an outermost one: preflights need no key, and pages can read
    # our errors.
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


def _bounds(client: EngineClient, settings: Settings) -> Bounds:
    model, tokenizer = client.model_config, client.get_tokenizer()
    longest = tokenizer.max_chars_per_token if tokenizer is not None else 1
    media = model.is_multimodal_model or model.enable_prompt_embeds
    most = settings.max_body_bytes
    return Bounds.of(model.max_model_len, longest, most, media, settings.caps())


async def serve(
    app: FastAPI,
    client: EngineClient,
    args: argparse.Namespace,
    settings: Settings,
    listener: socket.socket,
    signals: Signals,
) -> bool:
    """Serve until stopped; False if the engine died."""
    # vLLM's handler for a dead engine stops this object; our server watches `died` (serving.py).
    app.state.server = SimpleNamespace(should_exit=False)
    options = {name: getattr(args, name) for name in UVICORN}
    config = serving.configure(app, log_level=logging.getLogger().level, **options)
    refresher = (
        SSLCertRefresher(config.ssl, args.ssl_keyfile, args.ssl_certfile, args.ssl_ca_certs)
        if args.enable_ssl_refresh
        else None
    )

    def died() -> bool:
        return bool(client.errored)

    try:
        return await shared.run(app, settings, listener, signals, died, config)
    finally:
        if refresher is not None:
            refresher.stop()
