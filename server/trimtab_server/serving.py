"""How both applications are served, watched and ended: one uvicorn server.

A signal begins the drain: new requests are refused, those in flight go on for at most so long,
then they end with an error. So they do at once when the engine has died. A client that does not
read its answer is cut. From the end of the drain the process has LAST_SECONDS.
"""

import asyncio
import math
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from trimtab_server.drain import InFlight
from trimtab_server.errors import Stopping
from trimtab_server.http import HEAD_BYTES, Protocol
from trimtab_server.shutdown import Signals, leave_within

TICK = 0.1
LAST_SECONDS = 2.0
DEAD_SECONDS = 1.0
"""How long routes may take to tell their clients themselves that the engine has died."""
STALL_SECONDS = 30.0
"""A client must read STALL_BYTES of what waits for it in this time."""
DRAIN_STALL_SECONDS = 5.0
"""The same while the server drains."""
STALL_BYTES = 64 * 2**10


class Server(uvicorn.Server):
    """uvicorn's, without signal handlers of its own."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield


def configure(app: ASGIApp, **options: Any) -> uvicorn.Config:
    """uvicorn's configuration for an application; options: its own."""
    # Without a configuration of its own, its records go where ours do (trimtab.logs).
    options = {"h11_max_incomplete_event_size": HEAD_BYTES, "log_config": None, **options}
    config = uvicorn.Config(app, access_log=False, http=Protocol, **options)
    config.load()
    return config


async def serve(
    config: uvicorn.Config,
    listener: socket.socket,
    in_flight: InFlight,
    signals: Signals,
    drain: float,
    died: Callable[[], bool] = lambda: False,
) -> bool:
    """Serve until a signal comes or the engine has died; True if it was a signal.

    in_flight: as the application's Drain has it. drain: seconds for requests in flight after the
    signal.
    """
    loop = asyncio.get_running_loop()
    server = Server(config)
    asked = asyncio.Event()

    def stop() -> None:
        in_flight.refuse(_STOPPING)
        asked.set()

    def stop_soon() -> None:
        loop.call_soon_threadsafe(stop)

    signals.first(stop_soon)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    stalls = Stalls(server)

    async def until(done: Callable[[], bool], seconds: float, stall: float) -> None:
        deadline = loop.time() + seconds
        while not (done() or serving.done()) and loop.time() < deadline:
            stalls.cut(stall)
            await asyncio.sleep(TICK)

    await until(lambda: asked.is_set() or died(), math.inf, STALL_SECONDS)
    if serving.done():
        serving.result()  # it did not start, and has logged why
    if died():
        in_flight.refuse(_DIED)
        await until(lambda: not in_flight.requests, DEAD_SECONDS, DRAIN_STALL_SECONDS)
    else:
        await until(lambda: not in_flight.requests or died(), drain, DRAIN_STALL_SECONDS)
    leave_within(LAST_SECONDS, 0 if asked.is_set() else 1)
    await _close(server, serving, in_flight, _STOPPING if asked.is_set() else _DIED)
    return asked.is_set()


async def _close(
    server: Server, serving: "asyncio.Task[None]", in_flight: InFlight, error: Stopping
) -> None:
    ending = asyncio.create_task(in_flight.end(error))
    for _ in range(5):
        if not in_flight.requests:
            break
        await asyncio.sleep(TICK)
    in_flight.cancel()
    server.should_exit = True
    await asyncio.wait({serving, ending}, timeout=0.6)
    for connection in list(server.server_state.connections):
        connection.transport.abort()
    await asyncio.wait({serving, ending}, timeout=0.4)


class Stalls:
    """Connections whose client does not read."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.known: dict[Any, tuple[float, int]] = {}  # since when how many bytes wait

    def cut(self, seconds: float) -> None:
        """Cut those that have not read STALL_BYTES in so many seconds."""
        now, before, self.known = asyncio.get_running_loop().time(), self.known, {}
        for connection in list(self.server.server_state.connections):
            waiting = connection.transport.get_write_buffer_size()
            if waiting == 0:
                continue
            since, size = before.get(connection, (now, waiting))
            if waiting <= size - STALL_BYTES:
                since, size = now, waiting
            self.known[connection] = since, max(size, waiting)
            if now - since > seconds:
                connection.transport.abort()


_STOPPING = Stopping("the server is stopping; send the request again, here later or elsewhere.")
_DIED = Stopping("the engine has died, and the server stops; send the request again later.")
