"""GET /health, /metrics and /v1/models, for engines without their own application."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

router = APIRouter()


@router.get("/health")
async def health() -> dict[str, str]:
    """200 while the process answers."""
    return {"status": "ok"}


@router.get("/metrics")
async def metrics() -> Response:
    """Prometheus metrics."""
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


@router.get("/v1/models")
async def models(request: Request) -> dict[str, Any]:
    """The one model."""
    name = request.app.state.trimtab.model
    model = {"id": name, "object": "model", "created": 0, "owned_by": "trimtab"}
    return {"object": "list", "data": [model]}
