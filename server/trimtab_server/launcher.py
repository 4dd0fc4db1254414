"""`trimtab serve`, from settings to a served application.

1. The port is bound first, so that a busy one is reported before anything is loaded.
2. Paths are checked; logging is configured; vLLM is imported; its own parser reads the flags.
3. The engine starts with our processor and worker extension.
4. vLLM's application is built; our routes and middleware are added (app.py); it is served.

With an upstream there is no engine, and vLLM need not be installed: see upstream.py.
"""

import asyncio
import socket
from collections.abc import Sequence

import typer

from trimtab.config import GuidanceConfig
from trimtab.errors import StartError
from trimtab.logs import configure_logging
from trimtab_models.files import Unusable, is_missing, refuse_gguf
from trimtab_server import bases
from trimtab_server.presets.store import Presets
from trimtab_server.settings import Settings
from trimtab_server.shutdown import Signals, leave


def serve(settings: Settings, flags: Sequence[str]) -> None:
    """Serve until stopped; then exit with 0, or 1 if the engine died.

    Raises:
        StartError: it cannot start with these settings.
    """
    succeeded = True
    with Signals() as signals, listen(settings.host, settings.port) as listener:
        configure_logging(settings.log_level, settings.log_format)
        if settings.upstream is not None:
            if flags or settings.vllm:
                raise StartError(
                    "flags that trimtab does not know go to vLLM, which an upstream does without; "
                    "leave them out, and MODEL too."
                )
            from trimtab_server import upstream

            succeeded = asyncio.run(upstream.serve(settings, listener, signals))
        else:
            _refuse_gguf(settings.model)
            settings, defaults = bases.fill(settings)
            if not (settings.scorer or defaults):
                raise StartError("give at least one scorer: --scorer NAME=PATH.")
            settings = settings.ready_to_load()
            check_paths(settings)
            # Check the scorers before vLLM is imported: errors are short, without its tracebacks.
            from trimtab.loading import precheck

            precheck(GuidanceConfig.model_validate(settings.guidance()))
            Presets.load(settings).check([*settings.scorer], settings.default_scorer)
            succeeded = asyncio.run(_run(settings, flags, defaults, listener, signals))
    if not succeeded:
        typer.echo("trimtab: the engine died; the server stops with it.", err=True)
    leave(0 if succeeded else 1)  # Python's own exit takes seconds


def listen(host: str, port: int) -> socket.socket:
    """Bind the port.

    Raises:
        StartError: the port is busy, or the address is not local.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        # Another server may have bound the port without listening yet; then this fails.
        listener.listen()
    except OSError as error:
        listener.close()
        raise StartError(
            f"cannot listen on {host} port {port}: {error.strerror}; choose another with --port."
        ) from None
    return listener


def _refuse_gguf(model: str | None) -> None:
    try:
        refuse_gguf(model or "")
    except Unusable as error:
        raise StartError(str(error)) from None


def check_paths(settings: Settings) -> None:
    """Refuse paths of checkpoints that are not there, before torch is imported.

    What may be a hub name, and other families' paths, are checked later.
    """
    for name, spec in settings.scorer.items():
        if spec.family in ("function", "composite") or ":" in (spec.family or ""):
            continue
        for path in (spec.path, spec.reference):
            if path is not None and is_missing(path):
                raise StartError(
                    f"scorer '{name}' cannot be loaded: {path} is neither a checkpoint directory "
                    "nor a hub name that can be reached."
                )


async def _run(
    settings: Settings,
    flags: Sequence[str],
    defaults: Sequence[str],
    listener: socket.socket,
    signals: Signals,
) -> bool:
    # Imported late: vLLM's import takes seconds and reads the environment.
    from trimtab_server.vllm import app as application
    from trimtab_server.vllm import engine as engines

    args = engines.parse(settings, flags, defaults)
    engine = engines.start(args)
    try:
        app = await application.build(engine, args, settings)
        return await application.serve(app, engine, args, settings, listener, signals)
    finally:
        engine.shutdown(timeout=0)
