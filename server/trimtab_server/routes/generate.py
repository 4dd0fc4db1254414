"""POST /generate: always guided; β = 0 is the base model."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from trimtab.engine import GenerationRequest
from trimtab_server import bodies
from trimtab_server.protocol import parse
from trimtab_server.render import GenerateRenderer, answer
from trimtab_server.state import State

router = APIRouter()


@router.post("/generate")
async def generate(
    fields: Annotated[dict[str, Any], Depends(bodies.fields)], request: Request
) -> Response:
    """Continue a prompt under guidance."""
    state: State = request.app.state.trimtab
    body, guidance, search = parse(fields, state.caps)
    guidance = guidance.resolve(state.scorers, state.default)
    if search is not None:
        to_go = {name for name, version in state.scorers.items() if version.to_go}
        search.check_scorers(guidance, to_go)
    renderer = GenerateRenderer(state.model, ())
    renderer.requests = [
        GenerationRequest(
            id=f"gen-{renderer.id}",
            text=body.prompt,
            token_ids=body.prompt_token_ids,
            turns=body.turns(),
            sampling=body.sampling(),
            guidance=guidance,
            search=search,
            versions=state.versions(guidance.scorers),
            stream=body.stream,
            answer=body.answer_token_ids or (),
        )
    ]
    return await answer(request, state.generate(renderer.requests), renderer)
