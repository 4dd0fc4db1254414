"""/v1/presets: presets are shown, made, changed and deleted while serving.

The middleware requires the admin key (allowed.py).
"""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request

from trimtab_server import bodies
from trimtab_server.presets.fit import FitRequest, fit_preset
from trimtab_server.presets.preset import Preset
from trimtab_server.presets.store import shown
from trimtab_server.state import State

router = APIRouter()


@router.get("/v1/presets")
async def listing(request: Request) -> dict[str, Any]:
    """All presets."""
    state: State = request.app.state.trimtab
    presets = state.presets
    data = [shown(presets, name, state.model) for name in presets.all]
    return {"object": "list", "data": data}


@router.get("/v1/presets/{name}")
async def show(name: str, request: Request) -> dict[str, Any]:
    """One preset, without its key."""
    state: State = request.app.state.trimtab
    return shown(state.presets, name, state.model)


@router.put("/v1/presets/{name}")
async def put(
    name: str, fields: Annotated[dict[str, Any], Depends(bodies.fields)], request: Request
) -> dict[str, Any]:
    """Make or replace a preset: `guidance`, and optionally `bounds` and `key`."""
    state: State = request.app.state.trimtab
    presets = state.presets
    await presets.put(name, Preset.parse(fields), state.scorers, state.default)
    return shown(presets, name, state.model)


@router.post("/v1/presets/{name}/fit")
async def fit(
    name: str, fields: Annotated[dict[str, Any], Depends(bodies.fields)], request: Request
) -> dict[str, Any]:
    """Make a preset from comparisons of answers: their user's weights of the scorers."""
    state: State = request.app.state.trimtab
    fitted, saved = await fit_preset(state, name, FitRequest.parse(fields))
    return {
        "id": name,
        "object": "taste",
        **fitted.fields,
        "preset": shown(state.presets, name, state.model) if saved else None,
    }


@router.delete("/v1/presets/{name}")
async def delete(name: str, request: Request) -> dict[str, Any]:
    """Delete a preset; running requests keep their guidance."""
    state: State = request.app.state.trimtab
    await state.presets.delete(name)
    return {"id": name, "object": "preset", "deleted": True}
