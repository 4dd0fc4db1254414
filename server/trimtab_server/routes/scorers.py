"""POST /v1/scorers and DELETE /v1/scorers/{name}: what is served, changed while serving.

The middleware lets the admin key alone come here (allowed.py).
"""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request

from trimtab_server import strict_json
from trimtab_server.errors import Forbidden
from trimtab_server.loading import Loading, LoadRequest


async def loading(request: Request) -> Loading:
    """What loads."""
    found: Loading | None = request.app.state.trimtab_loading
    if found is None:
        raise Forbidden(
            "this server does not load scorers while it serves; start it with --admin-key and "
            "--scorer-dir."
        )
    return found


router = APIRouter(dependencies=[Depends(loading)])  # before a body is looked at


@router.post("/v1/scorers")
async def load(
    fields: Annotated[dict[str, Any], Depends(strict_json.fields)],
    loads: Annotated[Loading, Depends(loading)],
) -> dict[str, Any]:
    """Load a checkpoint of the server's directory, in place of what had its name."""
    version = await loads.load(LoadRequest.parse(fields))
    return {
        "id": version.name,
        "object": "scorer",
        "family": version.family,
        "version": version.number,
        "healthy": True,
    }


@router.delete("/v1/scorers/{name}")
async def unload(name: str, loads: Annotated[Loading, Depends(loading)]) -> dict[str, Any]:
    """Serve a scorer no more; requests that began with it keep it."""
    await loads.unload(name)
    return {"id": name, "object": "scorer", "deleted": True}
