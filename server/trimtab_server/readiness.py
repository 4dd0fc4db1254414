"""Readiness: the server is ready once each scorer has changed the logits.

For each scorer, one short request passes through the real engine. With k = 10 candidates and the
tail cut, any working scorer changes the distribution (a constant one does so by the cut), so
KL(π‖π0) > 0 and scored_steps > 0 show that guidance works.

GET /ready checks a scorer again if it has failed since its last check: one strange prompt does not
take the server out of service, a broken scorer does.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import Iterable, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from trimtab.engine import Version
from trimtab.errors import TrimtabError
from trimtab.params import GuidanceParams
from trimtab_server.state import State

log = logging.getLogger(__name__)

AGAIN_SECONDS = 10.0
"""Minimum time before a failed check is repeated."""


async def check_all(state: State) -> None:
    """Check every scorer once."""
    initial = {"faults": 0, "suspended": False}
    await check(state, [{"name": name, **initial} for name in state.scorers])


async def check(state: State, statuses: Iterable[Mapping[str, Any]]) -> None:
    """Check scorers that failed their last check, or have failed requests since."""
    for status in statuses:
        name, faults = status["name"], status["faults"]
        if status["suspended"] or not _due(state, name, faults):
            continue
        state.faults[name] = faults
        state.complaints[name] = await complaint(state, name)
        state.checked[name] = time.monotonic()
        if state.complaints[name] is not None:
            log.error("scorer %s %s", name, state.complaints[name])


def _due(state: State, name: str, faults: int) -> bool:
    if state.faults.get(name) != faults:
        return True
    healthy = state.complaint(name) is None and state.engine.problem() is None
    return not healthy and time.monotonic() - state.checked.get(name, 0.0) >= AGAIN_SECONDS


async def complaint(
    state: State, name: str, version: Version | None = None, seconds: float | None = None
) -> str | None:
    """Check a scorer, or a version of it, with one request: the problem, or None."""
    try:
        async with asyncio.timeout(state.engine.patience if seconds is None else seconds):
            return await _run_check(state, name, version)
    except TrimtabError as error:
        return f"failed its readiness check: {error.message}"
    except Exception as error:  # of any kind: the scorer is not ready
        return f"failed its readiness check ({type(error).__name__})"


async def _run_check(state: State, name: str, version: Version | None) -> str | None:
    request = replace(
        state.engine.greeting,
        id=f"readiness-{uuid.uuid4().hex}",
        guidance=GuidanceParams(scorers={name: 1.0}, k=10, mass=1.0, tail="truncate"),
        versions=[] if version is None else [version],
    )
    record = None
    async with aclosing(state.engine.generate(request)) as pieces:
        async for piece in pieces:
            record = piece.record
    if record is None:
        return "kept no record: the processor is not in use"
    if not (record["scored_steps"] > 0 and record["kl"] > 0):
        return "did not change the logits"
    return None
