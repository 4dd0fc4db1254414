"""The canary: before the server calls itself ready, each scorer must change the logits.

A short request per scorer goes the whole way through the real engine. With k = 10 candidates and
the tail cut, any working scorer moves the distribution (even a constant one, by the cut alone), so
KL(π‖π0) > 0 and scored_steps > 0 show that the processor really fuses.

A scorer that has failed since is asked again when somebody asks for `/ready`: one strange prompt
does not take the server out of service, a broken scorer does.
"""

import asyncio
import logging
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vllm.sampling_params import RequestOutputKind, SamplingParams

from trimtab.params import GuidanceParams
from trimtab_server.scorer_list import Version
from trimtab_server.vllm import prompts
from trimtab_server.vllm.records import EXCHANGE, Exchange
from trimtab_server.vllm.state import State

log = logging.getLogger(__name__)

TOKENS = 4
SECONDS = 30.0


async def sing(state: State) -> None:
    """Ask every scorer once."""
    new = {"faults": 0, "suspended": False}
    await check(state, [{"name": name, **new} for name in state.scorers])


async def check(state: State, found: Iterable[Mapping[str, Any]]) -> None:
    """Ask those scorers again that have failed since they were last asked."""
    for scorer in found:
        name = scorer["name"]
        if scorer["suspended"] or state.faults.get(name) == scorer["faults"]:
            continue
        state.faults[name] = scorer["faults"]
        state.complaints[name] = await complaint(state, name)
        if state.complaints[name] is not None:
            log.error("scorer %s %s", name, state.complaints[name])


async def complaint(
    state: State, name: str, version: Version | None = None, seconds: float = SECONDS
) -> str | None:
    """What a request to a scorer, or to a version of it, finds wrong; None if nothing."""
    try:
        async with asyncio.timeout(seconds):
            return await _ask(state, name, [] if version is None else [version])
    except Exception as error:  # whatever it is, the server is up but the scorer is not well
        return f"failed its canary request ({type(error).__name__})"


async def _ask(state: State, name: str, versions: Sequence[Version]) -> str | None:
    params = SamplingParams(
        max_tokens=TOKENS,
        ignore_eos=True,
        seed=0,
        output_kind=RequestOutputKind.FINAL_ONLY,
        extra_args=GuidanceParams(scorers={name: 1.0}, k=10, mass=1.0).to_xargs(),
    )
    exchange = Exchange(versions=versions)
    EXCHANGE.set(exchange)
    prompt = await prompts.text(state.renderer, "The")
    async for _ in state.engine.generate(prompt, params, f"canary-{uuid.uuid4().hex}"):
        pass
    record = exchange.record(0, 0)
    if record is None:
        return "kept no record: the processor is not in use"
    if not (record["scored_steps"] > 0 and record["kl"] > 0):
        return "did not change the logits"
    return None
