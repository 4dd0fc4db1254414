"""Requests without guidance over an upstream: forwarded whole, and answered as the upstream does.

One call, with all fields of the request: tools, JSON schemas, images, streams. Only the upstream's
key is added, and the model's name if it is absent. Guidance is never forwarded: the upstream would
ignore it.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

from fastapi import Request
from fastapi.responses import Response, StreamingResponse

from trimtab.adapters.openai.engine import UpstreamEngine
from trimtab.adapters.openai.forward import forward
from trimtab.errors import InvalidGuidance, TrimtabError
from trimtab_server import shapes
from trimtab_server.caps import check_caps
from trimtab_server.errors import UnknownModel
from trimtab_server.placement import flat, refuse_wrapped
from trimtab_server.render import unless_disconnected
from trimtab_server.state import State

ANTHROPIC = ("anthropic-version", "anthropic-beta")
"""Headers of a client of /v1/messages that the upstream needs."""


async def forwarded(request: Request, fields: Mapping[str, Any]) -> Response:
    """The upstream's answer to a request without guidance.

    Raises:
        InvalidGuidance: the request has guidance in a place that is not read.
        InvalidRequest, UnknownModel: a cap or the model's name.
        UpstreamBusy, UpstreamFailed, UpstreamTimeout, InvalidRequest: see forward.
    """
    state: State = request.app.state.trimtab
    engine = state.engine
    assert isinstance(engine, UpstreamEngine)
    refuse_wrapped(fields)
    if flat(fields):
        raise InvalidGuidance(
            "trimtab_* keys are for vLLM; with an upstream, send guidance.", param="guidance"
        )
    check_caps(fields, state.caps)
    if fields.get("model") not in (None, state.model):
        raise UnknownModel(
            f"there is no model of that name here, only {state.model}.", param="model"
        )
    body = {**{k: v for k, v in fields.items() if k != "guidance"}, "model": state.model}
    path = request.url.path.rpartition("/v1/")[2]
    call = forward(engine.client, path, body, _headers(request, engine), engine.deadline)
    kind, chunks = await unless_disconnected(request, call)
    if not kind.lower().startswith("text/event-stream"):
        return StreamingResponse(chunks, media_type=kind)
    return StreamingResponse(_events(chunks, f"/v1/{path}"), media_type=kind)


def _headers(request: Request, engine: UpstreamEngine) -> dict[str, str]:
    if not request.url.path.endswith("/messages"):
        return {}
    sent = {name: request.headers[name] for name in ANTHROPIC if name in request.headers}
    scheme, _, key = engine.client.http.headers.get("authorization", "").partition(" ")
    return {**sent, **({"x-api-key": key} if scheme == "Bearer" else {})}


async def _events(chunks: AsyncGenerator[bytes, None], path: str) -> AsyncIterator[bytes]:
    """A stream; if it breaks, its last event is an error in the route's shape."""
    sent = 0
    async with aclosing(chunks):
        try:
            async for chunk in chunks:
                sent += chunk.count(b"\n\n")
                yield chunk
        except TrimtabError as error:
            # What came of an unfinished event ends here.
            yield b"\n\n" + shapes.last_events(path, error, sent)
