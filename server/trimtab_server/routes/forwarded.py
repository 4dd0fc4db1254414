"""/v1/responses and /v1/messages over an upstream: forwarded, and refused with guidance."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from trimtab.errors import InvalidGuidance
from trimtab_server import bodies
from trimtab_server.forwarding import forwarded

router = APIRouter()
Body = Annotated[dict[str, Any], Depends(bodies.fields)]


@router.post("/v1/responses")
@router.post("/v1/messages")
async def unguided(fields: Body, request: Request) -> Response:
    """The upstream's own answer."""
    if fields.get("guidance") is not None:
        raise InvalidGuidance(
            "with an upstream, guidance does not go with this route; use /generate, "
            "/v1/chat/completions or /v1/completions, or leave it out.",
            param="guidance",
        )
    return await forwarded(request, fields)
