"""Worker processes of an arena; they end when it ends, even if it is killed."""

import multiprocessing
import os
import signal
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from trimtab import orphans


def pool(count: int, log: Path | None = None) -> ProcessPoolExecutor:
    """A pool of `count` worker processes.

    log: if set, each worker uses one thread and writes its bars and logs to this file.
    """
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(count, spawn, _begin, (os.getpid(), log))


def _begin(owner: int, log: Path | None) -> None:
    orphans.watch(owner)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C, the owner ends its workers
    if log is None:
        return
    import torch

    torch.set_num_threads(1)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
