"""Readiness: before the server calls itself ready, each scorer must change the logits.

A short request per scorer goes the whole way through the real engine. With k = 10 candidates and
the tail cut, any working scorer moves the distribution (even a constant one, by the cut alone), so
KL(π‖π0) > 0 and scored_steps > 0 show that guidance really works.

A scorer that has failed since is checked again when somebody asks for `/ready`: one strange prompt
does not take the server out of service, a broken scorer does.
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
"""A scorer whose check failed is checked again after this time."""


async def check_all(state: State) -> None:
    """Check every scorer once."""
    new = {"faults": 0, "suspended": False}
    await check(state, [{"name": name, **new} for name in state.scorers])


async def check(state: State, statuses: Iterable[Mapping[str, Any]]) -> None:
    """Check scorers that have failed since they were last checked, or failed that check."""
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
    well = state.complaint(name) is None and state.engine.problem() is None
    return not well and time.monotonic() - state.checked.get(name, 0.0) >= AGAIN_SECONDS


async def complaint(
    state: State, name: str, version: Version | None = None, seconds: float | None = None
) -> str | None:
    """What a request to a scorer, or to a version of it, finds wrong; None if nothing."""
    try:
        async with asyncio.timeout(state.engine.patience if seconds is None else seconds):
            return await _ask(state, name, version)
    except TrimtabError as error:
        return f"failed its readiness check: {error.message}"
    except Exception as error:  # whatever it is, the server is up but the scorer is not ready
        return f"failed its readiness check ({type(error).__name__})"


async def _ask(state: State, name: str, version: Version | None) -> str | None:
    request = replace(
        state.engine.greeting,
        id=f"readiness-{uuid.uuid4().hex}",
        guidance=GuidanceParams(scorers={name: 1.0}, k=10, mass=1.0),
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
