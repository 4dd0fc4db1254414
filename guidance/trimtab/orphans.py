"""Worker processes end when their owner ends, for whatever reason."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Thread

import psutil

OWNER = "TRIMTAB_OWNER"
"""Environment variable of an engine's processes: the process id of their owner."""
SECONDS = 1.0
"""Time between two checks of the owner."""


@contextmanager
def owned() -> Iterator[None]:
    """Make this process the owner of processes that start in the block and call `watch`."""
    os.environ[OWNER] = str(os.getpid())
    try:
        yield
    finally:
        del os.environ[OWNER]


def watch(owner: int | None = None) -> None:
    """When process `owner` ends, end this process and vLLM's other processes below `owner`.

    owner: default: the one set by `owned`. Does nothing unless the owner is an ancestor: an engine
    in the owner's own process is not watched, nor one on another machine.
    """
    owner = int(os.environ.get(OWNER, "0")) if owner is None else owner
    me = psutil.Process()
    above = next((process for process in me.parents() if process.pid == owner), None)
    if above is None:
        return
    # Some of them do not call watch: the engine above several workers, the engines' coordinator.
    family = [one for one in above.children(recursive=True) if one != me and _is_engine(one)]

    def wait() -> None:
        while _lives(above):
            time.sleep(SECONDS)
        for process in family:
            with suppress(psutil.Error):
                process.kill()
        os.kill(os.getpid(), signal.SIGKILL)

    Thread(target=wait, name="orphans", daemon=True).start()


def _lives(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _is_engine(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return "VLLM::" in " ".join(process.cmdline())
    return False
