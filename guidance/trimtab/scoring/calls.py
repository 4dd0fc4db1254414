"""Calls into scorers, each with a time budget; no exception of a scorer escapes.

Our networks run in the caller's thread: they end by themselves, and check the clock between
forwards (deadline.py). Everything else (functions, text in other templates, scorers of other
authors) runs in a separate thread. A call that overruns its budget there is abandoned: its thread
gets an exception, and its scorer is not called again before that thread ends, because two threads
must not touch the caches of one scorer. Three overruns within an hour suspend a scorer.

An exception in that thread never acts as a signal to this process: SystemExit and KeyboardInterrupt
are faults like any other. Not contained are code that ends the process (os._exit), and native code
that keeps the interpreter's lock (a regular expression that backtracks without end).
"""

import ctypes
import logging
import math
import queue
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from threading import TIMEOUT_MAX, Thread
from typing import Any, TypeVar
from weakref import finalize

import torch
from torch import Tensor

from trimtab.errors import TrimtabError
from trimtab.scorers.base import Scorer
from trimtab.scorers.composite import CompositeScorer
from trimtab.scoring import deadline
from trimtab.scoring.deadline import OutOfTime
from trimtab.scoring.pool import PrefixPool
from trimtab_models.transfers import upload

log = logging.getLogger(__name__)

STRIKES = 3
STRIKE_SECONDS = 3600.0
"""Time for which an overrun counts as a strike."""
FIRST = 3
"""Budgets of a scorer's first call, which compiles and warms up."""
READ_TOKENS = 2048
"""Prefix tokens, read for the first time, that add one budget to a call."""
T = TypeVar("T")
Outcome = tuple[Any, BaseException | None]


class ScorerFailed(TrimtabError):
    """A call into a scorer gave no result. The message has the reason, and nothing of the input.

    retry: the scorer raised, and may succeed for other rows. overrun: it ran out of time.
    """

    def __init__(self, message: str, *, retry: bool = False, overrun: bool = False) -> None:
        super().__init__(message)
        self.retry, self.overrun = retry, overrun


@dataclass
class CallStatus:
    """Status of the calls into a scorer."""

    answered: bool = False
    overruns: int = 0
    strikes: deque[float] = field(default_factory=lambda: deque(maxlen=STRIKES))
    left: Thread | None = None  # thread of its abandoned call

    @property
    def suspended(self) -> bool:
        """Whether it overran so often that it is not called for now."""
        full = len(self.strikes) == STRIKES
        return full and time.monotonic() - self.strikes[0] < STRIKE_SECONDS

    @property
    def busy(self) -> bool:
        """Whether an abandoned call is still running."""
        if self.left is None or not self.left.is_alive():
            return False
        _end(self.left)  # again: a loop may have caught the exception
        return True


class ScorerCalls:
    """Calls the scorers of one guide. `seconds` is the budget of a call, usually one per step.

    A step of d draft tokens scores d + 1 positions of a request, and has as many budgets.
    """

    def __init__(self, seconds: float = math.inf) -> None:
        self.seconds = seconds
        self._status: dict[int, CallStatus] = {}  # by id: a scorer need not be hashable
        self._thread: _CallThread | None = None

    def status(self, scorer: object) -> CallStatus:
        """Status of the calls into a scorer, or of a prefix pool. Each version has its own."""
        status = self._status.get(id(scorer))
        if status is None:
            status = self._status[id(scorer)] = CallStatus()
            finalize(scorer, self._status.pop, id(scorer), None)
        return status

    def until(self, scorer: Scorer, fresh: int, positions: int = 1) -> float:
        """Deadline of a call that starts now and reads `fresh` tokens for the first time.

        positions: of one request that the call scores, more than one with draft tokens.
        """
        first = 1 if self.status(scorer).answered else FIRST
        budgets = first * positions + fresh // READ_TOKENS
        return time.monotonic() + budgets * self.seconds

    def score(self, name: str, scorer: Scorer, work: Callable[[], T], until: float) -> T:
        """The result of `work`, which gets scores from `scorer`.

        Raises:
            ScorerFailed: it raised, overran, or is not called: it is busy, or suspended.
        """
        result = self._call(name, scorer, work, until)
        self.status(scorer).answered = True
        return result

    def run(self, name: str, scorer: Scorer, work: Callable[[], T], otherwise: T) -> T:
        """The result of `work`, any other call into `scorer`; `otherwise` if it fails."""
        try:
            return self._call(name, scorer, work, time.monotonic() + self.seconds)
        except ScorerFailed as failure:
            log.debug("scorer %s %s", name, failure.message, exc_info=failure.__cause__)
            return otherwise

    def _call(self, name: str, scorer: Scorer, work: Callable[[], T], until: float) -> T:
        if self.status(scorer).suspended:
            raise ScorerFailed("is suspended: it took too long several times")
        parts = _touched(scorer)
        status = [self.status(part) for part in parts]
        if any(of.busy for of in status):
            raise ScorerFailed("is still busy with a call that took too long")
        # An interrupted call may have left caches incomplete.
        broken = [part for part, of in zip(parts, status, strict=True) if of.left is not None]
        for of in status:
            of.left = None

        def whole() -> T:
            for part in broken:
                part.clear() if isinstance(part, PrefixPool) else part.reset()
            return work()

        run = _in_this_thread if scorer.keeps_time else self._in_other_thread
        answer, error = run(whole, until, parts)
        if isinstance(error, OutOfTime):
            self._strike(name, self.status(scorer))
            raise ScorerFailed("took longer than it may", overrun=True)
        if isinstance(error, ScorerFailed):
            raise error
        if error is not None:
            raise ScorerFailed(
                f"raised {type(error).__name__} while scoring", retry=True
            ) from error
        result: T = answer
        return result

    def _in_other_thread(
        self, work: Callable[[], T], until: float, parts: Sequence[object]
    ) -> Outcome:
        """The outcome of a call in the other thread; both are abandoned if it takes too long."""
        thread = self._thread = self._thread or _CallThread()
        try:
            return thread.run(_carry(work, until), until - time.monotonic())
        except BaseException as interruption:  # no answer yet, or a signal to this process
            self._thread = None
            for part in parts:
                self.status(part).left = thread.thread
            thread.leave()
            if isinstance(interruption, queue.Empty):
                return None, OutOfTime("the time is over")
            raise

    def _strike(self, name: str, status: CallStatus) -> None:
        status.overruns += 1
        status.strikes.append(time.monotonic())
        log.warning(
            "scorer %s took longer than it may (%g s a call), overrun %d",
            *(name, self.seconds, status.overruns),
        )
        if status.suspended:
            log.error("scorer %s is suspended: it took too long %d times", name, STRIKES)


def checked(work: Callable[[], Tensor], shape: Sequence[int], device: torch.device) -> Tensor:
    """A scorer's result as float32 on a device.

    Raises:
        ScorerFailed: it is not a tensor of real numbers, or has another shape.
    """
    flat: Any = work()
    if not isinstance(flat, Tensor) or flat.layout != torch.strided or flat.is_complex():
        raise ScorerFailed("returned no plain tensor of real numbers", retry=True)
    if flat.shape != shape:
        raise ScorerFailed(
            f"returned scores of shape {tuple(flat.shape)}, expected {tuple(shape)}", retry=True
        )
    return upload(flat.detach().float(), device).as_subclass(Tensor)


class _Ended(SystemExit):
    """Raised in a thread to end it; Python ignores a SystemExit in a thread."""


class _CallThread:
    """A thread that runs one call after another; it never keeps the process from exiting."""

    def __init__(self) -> None:
        self.calls: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.thread = Thread(target=_serve, args=(self.calls,), name="scorers", daemon=True)
        self.thread.start()
        finalize(self, self.calls.put, None)

    def run(self, work: Callable[[], Any], seconds: float) -> Outcome:
        """The outcome of a call.

        Raises:
            queue.Empty: there is none in time.
        """
        outcome: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self.calls.put((work, outcome))
        return outcome.get(timeout=None if seconds > TIMEOUT_MAX else max(seconds, 0))

    def leave(self) -> None:
        """Abandon the thread: it ends when it can."""
        self.calls.put(None)
        _end(self.thread)


def _serve(calls: "queue.SimpleQueue[Any]") -> None:
    with suppress(_Ended):
        while (call := calls.get()) is not None:
            work, outcome = call
            outcome.put(_outcome(work))
            del call, work, outcome  # keep no reference to a call until the next one


def _outcome(work: Callable[[], Any]) -> Outcome:
    try:
        return work(), None
    except BaseException as error:
        return None, error


def _in_this_thread(work: Callable[[], Any], until: float, _: Sequence[object]) -> Outcome:
    """The outcome of a call in this thread; signals to the process pass through."""
    try:
        with deadline.by(until):
            answer = work()
            deadline.check()
            return answer, None
    except Exception as error:
        return None, error


def _carry(work: Callable[[], T], until: float) -> Callable[[], T]:
    """The same call for another thread, with this thread's torch settings."""
    inference, gradients = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
    threads = torch.get_num_threads()
    # Setting a stream also sets its device.
    stream = torch.cuda.current_stream() if torch.cuda.is_initialized() else None

    def carried() -> T:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        with (
            nullcontext() if stream is None else torch.cuda.stream(stream),
            torch.inference_mode(inference),
            torch.set_grad_enabled(gradients),
            deadline.by(until),
        ):
            return work()

    return carried


def _touched(scorer: Scorer) -> list[Scorer | PrefixPool]:
    """A scorer, its parts and their pools, which other scorers may share: all that a call changes.

    A pool that several of them share is listed once.
    """
    parts = scorer.parts.values() if isinstance(scorer, CompositeScorer) else ()
    pools = dict.fromkeys(backbone.pool for backbone in scorer.backbones)
    return [scorer, *(part for part, _ in parts), *pools]


def _end(thread: Thread) -> None:
    """Raise _Ended in a thread, as soon as it runs Python code again."""
    set_exception = ctypes.pythonapi.PyThreadState_SetAsyncExc
    set_exception(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(_Ended))
