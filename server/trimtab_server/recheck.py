"""A repeated check: one at a time, with a bounded wait; and its last result, for strangers."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

from trimtab.errors import NotReady

SECONDS = 5.0
"""Maximum wait of a caller. The check continues after it."""
SEEN_SECONDS = 1.0
"""Time for which a result is repeated to strangers, who may ask as often as they like."""


class SharedCheck:
    """The running check, if any."""

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None

    async def done(self, check: Callable[[], Coroutine[Any, Any, None]]) -> bool:
        """Start `check` unless one is running; True if it ends within SECONDS."""
        if self.task is None:
            self.task = asyncio.create_task(check())
        task = self.task
        await asyncio.wait({task}, timeout=SECONDS)
        if not task.done():
            return False
        self.task = None
        task.result()
        return True


class Seen:
    """Whether a check passed, at most SEEN_SECONDS ago."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.passed = False
        self.until = 0.0  # time.monotonic until which `passed` holds

    async def of(self, check: Callable[[], Coroutine[Any, Any, None]]) -> bool:
        """The last result of `check`, which is called again if that is too old."""
        async with self.lock:
            if time.monotonic() >= self.until:
                try:
                    await check()
                    self.passed = True
                except NotReady:
                    self.passed = False
                self.until = time.monotonic() + SEEN_SECONDS
            return self.passed
