"""Processes of an arena's own: they end with it, however it ends."""

import multiprocessing
import os
import signal
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from trimtab import orphans


def pool(count: int, log: Path | None = None) -> ProcessPoolExecutor:
    """Processes for so many pieces of work at a time.

    log: where each works with one thread, and this file takes its bars and logs.
    """
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(count, spawn, _begin, (os.getpid(), log))


def _begin(owner: int, log: Path | None) -> None:
    orphans.watch(owner)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C at a terminal: the owner ends us
    if log is None:
        return
    import torch

    torch.set_num_threads(1)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
