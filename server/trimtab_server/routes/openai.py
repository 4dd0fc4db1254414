"""/v1/completions and /v1/chat/completions, for engines without their own application."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from trimtab_server import bodies, openai_requests
from trimtab_server.openai_requests import Parsed
from trimtab_server.render import ChatRenderer, CompletionRenderer, answer
from trimtab_server.state import State

router = APIRouter()
Body = Annotated[dict[str, Any], Depends(bodies.fields)]


@router.post("/v1/completions")
async def completions(fields: Body, request: Request) -> Response:
    """Continue one or several prompts, in OpenAI's shape."""
    return await _answer(request, fields, openai_requests.completion, CompletionRenderer)


@router.post("/v1/chat/completions")
async def chat(fields: Body, request: Request) -> Response:
    """Continue a conversation, in OpenAI's shape."""
    return await _answer(request, fields, openai_requests.chat, ChatRenderer)


async def _answer(
    request: Request,
    fields: dict[str, Any],
    parse: Callable[[Mapping[str, Any], State], Parsed],
    shape: type[CompletionRenderer],
) -> Response:
    state: State = request.app.state.trimtab
    if fields.get("guidance") is None and state.forward is not None:
        return await state.forward(request, fields)
    parsed = parse(fields, state)
    renderer = shape(state.model, parsed.requests, parsed.usage)
    return await answer(request, state.generate(parsed.requests), renderer)
