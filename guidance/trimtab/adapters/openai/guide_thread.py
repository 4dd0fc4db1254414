"""The thread that calls the guide, so that the event loop never waits for a scorer."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")


class GuideThread(ThreadPoolExecutor):
    """One thread: work is done in the order in which it was submitted."""

    def __init__(self) -> None:
        super().__init__(1, "guide")

    async def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """The result of `work`."""
        return await asyncio.get_running_loop().run_in_executor(self, work, *arguments)

    def later(self, work: Callable[..., Any], *arguments: Any) -> None:
        """Call `work` after the thread's current work, which may still use the data."""
        with suppress(RuntimeError):  # the engine is closed
            self.submit(work, *arguments)
