"""GET /v1/scorers and GET /ready."""

from functools import partial
from typing import Any

from fastapi import APIRouter, Request

from trimtab.errors import NotReady
from trimtab_server import readiness
from trimtab_server.allowed import KNOWN
from trimtab_server.scorer_list import SUSPENDED, scorer_list
from trimtab_server.state import State

router = APIRouter()


@router.get("/v1/scorers")
async def scorers(request: Request) -> dict[str, Any]:
    """The scorers of this server: family, objective, normalisation, prefix-AUC and health."""
    state: State = request.app.state.trimtab
    return scorer_list(await state.statuses(), state.complaint, state.default_weights)


@router.get("/ready")
async def ready(request: Request) -> dict[str, str]:
    """200 if every scorer has passed its readiness check and the engine works.

    Without a key: 200 or 503, with no reason, from a check of the last second.
    """
    state: State = request.app.state.trimtab
    if request.scope.get(KNOWN, True):
        await _check(state)
    elif not await state.seen.of(partial(_check, state)):
        raise NotReady("not ready; the reason needs a key.")
    return {"status": "ready"}


async def _check(state: State) -> None:
    """Raise NotReady, with the reasons, unless the server is ready."""
    try:
        statuses = await state.statuses()
    except NotReady as error:
        raise NotReady(f"not ready: {error}") from None
    checked = state.complaints.keys() >= set(state.scorers)  # the first check has ended
    if checked and not await state.recheck.done(lambda: readiness.check(state, statuses)):
        raise NotReady("not ready: scorers that have failed are being checked again.")
    problems = {name: state.complaint(name) for name in state.scorers}
    problems |= {one["name"]: SUSPENDED for one in statuses if one["suspended"]}
    reasons = [f"scorer '{name}' {what}" for name, what in problems.items() if what is not None]
    if not reasons and (problem := state.engine.problem()) is not None:
        reasons = [problem]
    if reasons:
        raise NotReady("not ready: " + "; ".join(reasons) + ".")
