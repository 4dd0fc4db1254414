"""GET /v1/scorers and GET /ready. (/health and /metrics are vLLM's own.)"""

from typing import Any

from fastapi import APIRouter, Request

from trimtab_server.errors import NotReady
from trimtab_server.scorer_list import SUSPENDED, listed
from trimtab_server.vllm import readiness, rpc
from trimtab_server.vllm.state import State

router = APIRouter()

SUMS = ("faults", "overruns", "tokens_forwarded")
ANSWER_SECONDS = 5.0
"""How long the engine may take to answer between two steps before it counts as stalled."""


@router.get("/v1/scorers")
async def scorers(request: Request) -> dict[str, Any]:
    """The scorers of this server: family, objective, normalisation, prefix-AUC and health."""
    state: State = request.app.state.trimtab
    statuses = [
        {**one, "version": state.scorers[one["name"]].number}
        for one in await ask(state)
        if one["name"] in state.scorers
    ]
    return listed(statuses, state.complaint, state.default or dict.fromkeys(state.scorers, 1.0))


@router.get("/ready")
async def ready(request: Request) -> dict[str, str]:
    """200 once every scorer has been seen to change logits, and while engine and scorers do."""
    state: State = request.app.state.trimtab
    found = await ask(state)
    begun = state.complaints.keys() >= set(state.scorers)  # the first canary has ended
    if begun and not await state.again.done(lambda: readiness.check(state, found)):
        raise NotReady("not ready: scorers that have failed are being asked again.")
    wrong = {name: state.complaint(name) for name in state.scorers}
    wrong |= {one["name"]: SUSPENDED for one in found if one["suspended"]}
    if bad := [f"scorer '{name}' {what}" for name, what in wrong.items() if what is not None]:
        raise NotReady("not ready: " + "; ".join(bad) + ".")
    return {"status": "ready"}


async def ask(state: State) -> list[dict[str, Any]]:
    """What the engine tells of its scorers.

    Raises:
        NotReady: it does not answer.
    """
    try:
        answers = await rpc.call(state.engine, "trimtab_scorers", seconds=ANSWER_SECONDS)
    except NotReady as error:
        raise NotReady(f"not ready: {error}") from None
    engines = [answer for answer in answers if answer is not None]
    if len(engines) == 1:
        return engines[0]
    return [
        {
            **of[0],
            **{key: sum(one[key] for one in of) for key in SUMS},
            "suspended": any(one["suspended"] for one in of),
        }
        for of in zip(*engines, strict=True)
    ]
