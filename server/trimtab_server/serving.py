"""Serve an application with uvicorn, watch it and stop it.

A signal starts the drain: new requests are refused; requests in flight continue until the drain
timeout, then end with an error. If the engine dies, they end at once. A client that does not read
its answer is disconnected. After the drain, the process ends within LAST_SECONDS.
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
"""Time in which routes may report the dead engine to their clients themselves."""
STALL_SECONDS = 30.0
"""A client must read STALL_BYTES of its pending data within this time."""
DRAIN_STALL_SECONDS = 5.0
"""The same while the server drains."""
STALL_BYTES = 64 * 2**10


class Server(uvicorn.Server):
    """uvicorn's server without its signal handlers."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Install no signal handlers."""
        yield


def configure(app: ASGIApp, **options: Any) -> uvicorn.Config:
    """uvicorn's configuration for an application; options: those of uvicorn.Config."""
    # Without log_config, uvicorn logs through our configuration (trimtab.logs).
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
    """Serve until a signal arrives or the engine dies; True if it was a signal.

    in_flight: that of the application's Drain. drain: seconds for requests in flight after the
    signal.
    """
    loop = asyncio.get_running_loop()
    server = Server(config)
    signalled = asyncio.Event()

    def stop() -> None:
        in_flight.refuse(_STOPPING)
        signalled.set()

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

    await until(lambda: signalled.is_set() or died(), math.inf, STALL_SECONDS)
    if serving.done():
        serving.result()  # raises if the server did not start
    if died():
        in_flight.refuse(_DIED)
        await until(lambda: not in_flight.requests, DEAD_SECONDS, DRAIN_STALL_SECONDS)
    else:
        await until(lambda: not in_flight.requests or died(), drain, DRAIN_STALL_SECONDS)
    leave_within(LAST_SECONDS, 0 if signalled.is_set() else 1)
    await _close(server, serving, in_flight, _STOPPING if signalled.is_set() else _DIED)
    return signalled.is_set()


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
    """Disconnects clients that do not read."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.known: dict[Any, tuple[float, int]] = {}  # time and pending bytes

    def cut(self, seconds: float) -> None:
        """Abort connections that have not read STALL_BYTES within `seconds`."""
        now, previous, self.known = asyncio.get_running_loop().time(), self.known, {}
        for connection in list(self.server.server_state.connections):
            pending = connection.transport.get_write_buffer_size()
            if pending == 0:
                continue
            since, size = previous.get(connection, (now, pending))
            if pending <= size - STALL_BYTES:
                since, size = now, pending
            self.known[connection] = since, max(size, pending)
            if now - since > seconds:
                connection.transport.abort()


_STOPPING = Stopping("the server is stopping; send the request again, here later or elsewhere.")
_DIED = Stopping("the engine has died, and the server stops; send the request again later.")
