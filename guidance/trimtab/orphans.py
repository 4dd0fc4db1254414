"""No process outlives the one that it works for, however that one ends."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Thread

import psutil

OWNER = "TRIMTAB_OWNER"
"""Variable in the environment of an engine's processes: the process that they work for."""
SECONDS = 1.0
"""Between two looks at it."""


@contextmanager
def owned() -> Iterator[None]:
    """Processes that are started meanwhile, and call `watch`, work for this one."""
    os.environ[OWNER] = str(os.getpid())
    try:
        yield
    finally:
        del os.environ[OWNER]


def watch(owner: int | None = None) -> None:
    """End this process once process `owner` has ended, and vLLM's others below `owner` too.

    owner: as `owned` says if absent. Nothing happens unless it is above this process: an engine
    within the owner's own process is not watched, nor one on another machine.
    """
    owner = int(os.environ.get(OWNER, "0")) if owner is None else owner
    me = psutil.Process()
    above = next((process for process in me.parents() if process.pid == owner), None)
    if above is None:
        return
    # Some of them do not watch: the engine above several workers, the coordinator of engines.
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
