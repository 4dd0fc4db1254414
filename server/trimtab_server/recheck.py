"""A check that is made again now and then: one at a time, and nobody waits for it for long."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

SECONDS = 5.0
"""How long who asks for it waits; it goes on without."""


class Again:
    """The present check, if one is under way."""

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None

    async def done(self, check: Callable[[], Coroutine[Any, Any, None]]) -> bool:
        """Begin `check` unless one is under way; whether it ends within SECONDS."""
        if self.task is None:
            self.task = asyncio.create_task(check())
        task = self.task
        await asyncio.wait({task}, timeout=SECONDS)
        if not task.done():
            return False
        self.task = None
        task.result()
        return True
