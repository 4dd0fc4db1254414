"""A server of the engine in memory, in a thread, for the commands that speak HTTP."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from conftest import KEY, free_port

from trimtab.adapters.memory import MemoryEngine
from trimtab.config import GuidanceConfig
from trimtab.description import describe
from trimtab.guide import Guide
from trimtab.loading import load_scorers
from trimtab_server import app, readiness
from trimtab_server.settings import Settings
from trimtab_server.sizes import Bounds
from trimtab_server.state import State


def likes_vowels(ids):
    return float(ids[-1] in {2, 6, 10, 16, 22})


def made():
    scorers = {
        name: {"path": f"{__name__}:likes_vowels", "family": "function"}
        for name in ("sentiment", "formality")
    }
    chosen = Settings(model="demo", scorer=scorers, api_key=[KEY])
    config = GuidanceConfig.model_validate(chosen.guidance())
    guide = Guide(load_scorers(config, max_length=512, vocab_size=70))
    state = State(MemoryEngine(guide), app.versions(describe(guide), chosen), None)
    return app.build(state, chosen, Bounds.of(512, 4, 2**20), 64)


@contextmanager
def serving() -> Iterator[str]:
    """The address of the server while the block runs."""
    port = free_port()
    application = made()
    asyncio.run(readiness.check_all(application.state.trimtab))
    config = uvicorn.Config(application, port=port, log_level="error", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(10)
