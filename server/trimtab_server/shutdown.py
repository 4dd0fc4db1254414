"""How the process ends: on a signal, by a deadline, and with nothing left behind."""

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
    """SIGINT and SIGTERM of this process, heeded by a thread of its own; to be used in a `with`.

    A signal ends the process and its children at once, with a line on stderr and status 128 + its
    number, until `first` says what the next one does instead; those after it end it so again.
    The thread does not wait for the main one, which may be in a long call of a library.
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
        """Do `work`, in the thread of this class, at the next signal."""
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


# A forked process would write its signals to the socket of this one.
os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))


@contextmanager
def unsignalled() -> Iterator[None]:
    """Processes that are started meanwhile do not see SIGINT and SIGTERM.

    Ctrl-C at a terminal and a service manager send them to the engine too, which must outlive the
    drain. vLLM ends it with SIGKILL as well.
    """
    resource_tracker.ensure_running()  # else, when it is started, it unblocks them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave(status: int) -> NoReturn:
    """End the process now, whatever its threads do, and its children with it."""
    try:
        end_children()
    finally:
        os._exit(status)


def leave_within(seconds: float, status: int) -> None:
    """End the process as `leave` does, unless it has ended by itself by then."""

    def wait() -> None:
        sleep(seconds)
        leave(status)

    Thread(target=wait, name="deadline", daemon=True).start()


def end_children() -> None:
    """Kill all processes below this one, except the tracker that cleans up their shared memory."""
    known: set[psutil.Process] = set()
    while found := set(psutil.Process().children(recursive=True)) - known:
        for child in found:
            with suppress(psutil.Error):
                child.suspend()  # now it starts no other
        known |= found
    for child in known:
        with suppress(psutil.Error):
            if any("resource_tracker" in word for word in child.cmdline()):
                child.resume()
            else:
                child.kill()
