"""A repeated check: one at a time, with a bounded wait."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

SECONDS = 5.0
"""Maximum wait of a caller. The check continues after it."""


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
