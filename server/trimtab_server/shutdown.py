"""End the process on a signal or by a deadline, with all its children."""

import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from threading import Thread
from time import sleep
from types import TracebackType
from typing import NoReturn

import psutil

STOPPING = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """Handles SIGINT and SIGTERM of this process in its own thread. Use it in a `with`.

    By default, a signal ends the process and its children at once, with a line on stderr and status
    128 + signal number. `first` sets another action for the next signal only.
    The thread does not wait for the main one, which may be in a long library call.
    """

    def __init__(self, farewell: str = "stopped.") -> None:
        self.farewell = farewell

    def __enter__(self) -> "Signals":
        self._first: Callable[[], None] | None = None
        self._ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        self._theirs = theirs
        self._handlers = {number: signal.signal(number, _nothing) for number in STOPPING}
        signal.set_wakeup_fd(theirs.fileno())  # Python writes each signal's number to it
        Thread(target=self._wait, name="signals", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        signal.set_wakeup_fd(-1)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._theirs.close()

    def first(self, work: Callable[[], None]) -> None:
        """Call `work` in this class's thread at the next signal."""
        self._first = work

    def _wait(self) -> None:
        with self._ours:
            while received := self._ours.recv(1):
                number = received[0]
                if number not in STOPPING:
                    continue
                work, self._first = self._first, None
                if work is None:
                    os.write(2, f"\ntrimtab: {self.farewell}\n".encode())
                    leave(128 + number)
                work()


def _nothing(*_: object) -> None:
    pass


# Otherwise a forked process would write its signals to this process's socket.
os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))


@contextmanager
def unsignalled() -> Iterator[None]:
    """Block SIGINT and SIGTERM in processes that are started in this context.

    Ctrl-C in a terminal and service managers signal the engine too, which must outlive the drain.
    vLLM can still end it with SIGKILL.
    """
    resource_tracker.ensure_running()  # its later start would unblock the signals
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def leave(status: int) -> NoReturn:
    """End the process and its children now, whatever its threads do."""
    try:
        end_children()
    finally:
        os._exit(status)


def leave_within(seconds: float, status: int) -> None:
    """End the process as `leave` does, unless it ends by itself within `seconds`."""

    def wait() -> None:
        sleep(seconds)
        leave(status)

    Thread(target=wait, name="deadline", daemon=True).start()


def end_children() -> None:
    """Kill all descendants, except the tracker that cleans up their shared memory."""
    known: set[psutil.Process] = set()
    while new := set(psutil.Process().children(recursive=True)) - known:
        for child in new:
            with suppress(psutil.Error):
                child.suspend()  # so that it starts no other
        known |= new
    for child in known:
        with suppress(psutil.Error):
            if any("resource_tracker" in word for word in child.cmdline()):
                child.resume()
            else:
                child.kill()
