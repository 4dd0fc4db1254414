"""The application: vLLM's own, with our routes, middleware and error handler over it."""

import argparse
import asyncio
import logging
import socket
from contextlib import suppress
from typing import Any

import typer
from fastapi import FastAPI
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.launcher import serve_http

from trimtab.adapters.ranks import told
from trimtab.errors import TrimtabError
from trimtab_server import canary, errors
from trimtab_server.auth import ApiKeys
from trimtab_server.doubts import doubts
from trimtab_server.guided import follow_engine
from trimtab_server.http import Protocol
from trimtab_server.limits import BodyLimit
from trimtab_server.loading import Loading
from trimtab_server.middleware import Guidance
from trimtab_server.routes import generate, status
from trimtab_server.routes import scorers as scorer_routes
from trimtab_server.settings import Settings
from trimtab_server.state import State, Version

log = logging.getLogger(__name__)


async def build(engine: Any, args: argparse.Namespace, settings: Settings) -> FastAPI:
    """vLLM's application around `engine`, and ours over it.

    A request passes, outermost first: API key → size of the body → guidance → vLLM.
    """
    tasks = await engine.get_supported_tasks()
    app: FastAPI = build_app(args, tasks, engine.model_config)
    await init_app_state(engine, app.state, args, tasks)
    follow_engine(engine)
    default = settings.default_scorer or None
    scorers = {
        found["name"]: Version(
            found["name"], 1, found["family"], found["reads"], _parts(settings, found["name"])
        )
        for found in told(await engine.collective_rpc("trimtab_scorers"))
    }
    name = (args.served_model_name or [args.model])[0]
    state = State(engine, app.state.online_renderer, name, scorers, default)
    app.state.trimtab = state
    app.state.trimtab_loading = None
    if settings.admin_key is not None and settings.scorer_dir is not None:
        app.state.trimtab_loading = Loading(state, settings.scorer_dir)
    app.include_router(generate.router)
    app.include_router(status.router)
    app.include_router(scorer_routes.router)
    app.add_exception_handler(TrimtabError, errors.handle)
    # vLLM has built its stack of middleware already; with ours, it is built anew when serving.
    app.middleware_stack = None
    app.add_middleware(Guidance, scorers=scorers, default=default)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    keys = [key.get_secret_value() for key in settings.api_key]
    admin = settings.admin_key
    app.add_middleware(ApiKeys, keys=keys, admin_key=admin.get_secret_value() if admin else None)
    return app


def _parts(settings: Settings, name: str) -> frozenset[str]:
    """The scorers that a composite is made of."""
    spec = settings.scorer[name]
    if spec.family != "composite":
        return frozenset()
    return frozenset(part.strip().partition(":")[0] for part in spec.path.split("+"))


async def serve(
    app: FastAPI, args: argparse.Namespace, listener: socket.socket, host: str, port: int
) -> bool:
    """Serve until stopped; the canary sings meanwhile. False if the engine died of itself."""
    engine = app.state.trimtab.engine
    stop, asked = engine.shutdown, asyncio.Event()

    def shutdown(*given: Any, **named: Any) -> None:
        # vLLM stops the engine first when it is told to end; afterwards both look alike.
        asked.set()
        stop(*given, **named)

    engine.shutdown = shutdown
    singing = asyncio.create_task(_begin(app.state.trimtab, f"http://{host}:{port}"))
    stopped = await serve_http(
        app,
        sock=listener,
        enable_ssl_refresh=args.enable_ssl_refresh,
        host=host,
        port=port,
        log_level=logging.getLogger().level,
        access_log=False,
        http=Protocol,
        ssl_keyfile=args.ssl_keyfile,
        ssl_certfile=args.ssl_certfile,
        ssl_ca_certs=args.ssl_ca_certs,
        ssl_cert_reqs=args.ssl_cert_reqs,
        ssl_ciphers=args.ssl_ciphers,
        h11_max_incomplete_event_size=args.h11_max_incomplete_event_size,
    )
    died = engine.errored and not asked.is_set()
    singing.cancel()
    await stopped
    return not died


async def _begin(state: State, address: str) -> None:
    await canary.sing(state)
    with suppress(errors.NotReady):  # /ready will tell
        for doubt in doubts(await status.ask(state)):
            log.warning("%s", doubt)
    told = "ready" if all(state.complaint(name) is None for name in state.scorers) else "NOT READY"
    typer.echo(f"{told}: {state.model} at {address}, steered by {', '.join(state.scorers)}")
