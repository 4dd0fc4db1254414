"""Calls to the engine and its workers, with a time limit and a check for a dead engine."""

import asyncio
import logging
from collections.abc import Coroutine
from itertools import chain
from typing import Any, TypeVar

from vllm.engine.protocol import EngineClient
from vllm.exceptions import VLLMError
from vllm.v1.engine.exceptions import EngineDeadError

from trimtab.errors import NotReady, TrimtabError

log = logging.getLogger(__name__)

SECONDS = 60.0
"""Default time limit of a call. The engine answers between two steps."""
TICK = 0.2
T = TypeVar("T")


async def within(engine: EngineClient, work: Coroutine[Any, Any, T], seconds: float) -> T:
    """The result of `work`, which waits for the engine.

    Raises:
        NotReady: the engine is dead, dies during the call, or takes too long.
        Exception: whatever `work` raises.
    """
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    try:
        while not task.done():
            # vLLM never answers a call if the engine dies.
            if engine.errored:
                raise NotReady("the engine is dead.")
            if loop.time() > deadline:
                raise NotReady(f"the engine does not answer ({seconds:g} seconds).")
            await asyncio.wait({task}, timeout=min(TICK, seconds))
        return task.result()
    except EngineDeadError:
        raise NotReady("the engine is dead.") from None
    finally:
        task.cancel()


async def call(
    engine: EngineClient, method: str, *arguments: Any, seconds: float | None = None
) -> list[Any]:
    """Call a method of GuidanceWorker: the answers of the workers of all engines, in order.

    Raises:
        NotReady: see `within`; `seconds` is SECONDS if absent.
        TrimtabError: the method failed.
    """
    # vLLM's own collective_rpc calls all engines, but returns only the first one's answer.
    work = engine.engine_core.call_utility_all_async(
        "collective_rpc", method, None, arguments, None
    )
    try:
        answers = await within(engine, work, SECONDS if seconds is None else seconds)
    except (TrimtabError, VLLMError):
        raise
    except Exception as error:  # vLLM raises a plain Exception if the call failed
        log.debug("%s failed: %s", method, error)
        raise TrimtabError(f"the call {method} of the worker failed; its log says why.") from None
    return list(chain.from_iterable(answers))
