"""Hot loading: POST /v1/scorers, DELETE /v1/scorers/{name}, and versions that wait.

The middleware requires the admin key (allowed.py).
"""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request

from trimtab.engine import Version
from trimtab_server import bodies
from trimtab_server.errors import Forbidden
from trimtab_server.loading import Loading, LoadRequest


async def loading(request: Request) -> Loading:
    """The server's Loading.

    Raises:
        Forbidden: hot loading is off.
    """
    loader: Loading | None = request.app.state.trimtab_loading
    if loader is None:
        raise Forbidden(
            "this server does not load scorers while it serves; start it with --admin-key and "
            "--scorer-dir."
        )
    return loader


router = APIRouter(dependencies=[Depends(loading)])  # runs before the body is parsed


@router.post("/v1/scorers")
async def load(
    fields: Annotated[dict[str, Any], Depends(bodies.fields)],
    loads: Annotated[Loading, Depends(loading)],
) -> dict[str, Any]:
    """Load a checkpoint of the server's scorer_dir; it replaces a scorer of that name.

    With `"serve": false`, the version is checked, and waits until it is served or dropped.
    """
    request = LoadRequest.parse(fields)
    return {**_body(await loads.load(request)), "serving": request.serve}


@router.post("/v1/scorers/{name}/versions/{number}")
async def serve(
    name: str, number: int, loads: Annotated[Loading, Depends(loading)]
) -> dict[str, Any]:
    """Serve a version that waits."""
    return {**_body(await loads.serve_staged(name, number)), "serving": True}


@router.delete("/v1/scorers/{name}/versions/{number}")
async def drop(
    name: str, number: int, loads: Annotated[Loading, Depends(loading)]
) -> dict[str, Any]:
    """Drop a version that waits."""
    await loads.drop_staged(name, number)
    return {"id": name, "object": "scorer", "version": number, "deleted": True}


def _body(version: Version) -> dict[str, Any]:
    return {
        "id": version.name,
        "object": "scorer",
        "family": version.family,
        "version": version.number,
        "healthy": True,
    }


@router.delete("/v1/scorers/{name}")
async def unload(name: str, loads: Annotated[Loading, Depends(loading)]) -> dict[str, Any]:
    """Unload a scorer; running requests keep it."""
    await loads.unload(name)
    return {"id": name, "object": "scorer", "deleted": True}
