"""POST /generate, /v1/completions and /v1/chat/completions over an upstream, whole or streamed."""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from trimtab.errors import TrimtabError
from trimtab_server import strict_json
from trimtab_server.errors import NotReady
from trimtab_server.events import DONE, event
from trimtab_server.upstream import requests
from trimtab_server.upstream.requests import Asked
from trimtab_server.upstream.state import UpstreamState
from trimtab_server.upstream.steps import Piece

router = APIRouter()
Body = Annotated[dict[str, Any], Depends(strict_json.fields)]


@router.post("/generate")
async def generate(fields: Body, request: Request) -> Response:
    """Continue a prompt under guidance; β = 0 is the upstream's own distribution."""
    return await _answer(request, await _read(requests.generate, fields, request), GenerateRenderer)


@router.post("/v1/completions")
async def completions(fields: Body, request: Request) -> Response:
    """The same in OpenAI's shape."""
    return await _answer(
        request, await _read(requests.completion, fields, request), CompletionRenderer
    )


@router.post("/v1/chat/completions")
async def chat(fields: Body, request: Request) -> Response:
    """The same for a conversation."""
    return await _answer(request, await _read(requests.chat, fields, request), ChatRenderer)


async def _read(
    read: Callable[[Mapping[str, Any], UpstreamState], Asked],
    fields: Mapping[str, Any],
    request: Request,
) -> Asked:
    """The request, read in a thread: templates and tokenizers take time with a prompt's length."""
    return await asyncio.to_thread(read, fields, _state(request))


def _state(request: Request) -> UpstreamState:
    state: UpstreamState = request.app.state.upstream
    return state


@dataclass
class GenerateRenderer:
    """Renders the pieces of one request's choices, in the shape of POST /generate."""

    model: str
    made: Asked
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))
    tokens: int = 0

    usage_last = True  # a stream ends with the token counts, whether asked for or not

    def head(self, stream: bool) -> dict[str, Any]:
        """What an answer or an event begins with."""
        return {"id": f"gen-{self.id}", "model": self.model}

    def choice(self, piece: Piece, stream: bool) -> dict[str, Any]:
        """One choice, or what is new of it."""
        shown = {
            "index": piece.index,
            "text": piece.text,
            "token_ids": piece.token_ids,
            "finish_reason": piece.finish_reason,
        }
        return self._with_record(shown, piece)

    def _with_record(self, shown: dict[str, Any], piece: Piece) -> dict[str, Any]:
        if piece.finish_reason is not None and self.made.params is not None:
            shown["guidance"] = piece.record
        return shown

    def usage(self) -> dict[str, int]:
        """Token counts so far; without a tokenizer, a prompt counts as one."""
        prompt = sum(len(prompt.ids) for prompt in self.made.prompts)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self.tokens,
            "total_tokens": prompt + self.tokens,
        }


class CompletionRenderer(GenerateRenderer):
    """The shape of /v1/completions."""

    usage_last = False

    def head(self, stream: bool) -> dict[str, Any]:
        """See GenerateRenderer.head."""
        return {
            "id": f"cmpl-{self.id}",
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
        }

    def choice(self, piece: Piece, stream: bool) -> dict[str, Any]:
        """See GenerateRenderer.choice."""
        shown = {
            "index": piece.index,
            "text": piece.text,
            "logprobs": None,
            "finish_reason": piece.finish_reason,
        }
        return self._with_record(shown, piece)


class ChatRenderer(CompletionRenderer):
    """The shape of /v1/chat/completions."""

    def head(self, stream: bool) -> dict[str, Any]:
        """See GenerateRenderer.head."""
        kind = "chat.completion.chunk" if stream else "chat.completion"
        return {**super().head(stream), "id": f"chatcmpl-{self.id}", "object": kind}

    def choice(self, piece: Piece, stream: bool) -> dict[str, Any]:
        """See GenerateRenderer.choice."""
        said = {"role": "assistant", "content": piece.text}
        shown = {
            "index": piece.index,
            "delta" if stream else "message": said,
            "logprobs": None,
            "finish_reason": piece.finish_reason,
        }
        return self._with_record(shown, piece)


async def _answer(request: Request, made: Asked, shape: type[GenerateRenderer]) -> Response:
    state = _state(request)
    telling = shape(state.model, made)
    pieces = state.decoder.run(made.prompts, made.request, made.params)
    if made.request.stream:
        # What fails before anything was shown has a status of its own.
        first = await _unless_left(request, anext(pieces))
        return StreamingResponse(_events(first, pieces, telling), media_type="text/event-stream")
    choices = await _unless_left(request, _whole(pieces))
    telling.tokens = sum(len(piece.token_ids) for piece in choices)
    shown = [telling.choice(piece, False) for piece in choices]
    return JSONResponse({**telling.head(False), "choices": shown, "usage": telling.usage()})


async def _whole(pieces: AsyncGenerator[Piece, None]) -> list[Piece]:
    """Every choice in one piece, in order."""
    choices: dict[int, Piece] = {}
    async with aclosing(pieces):
        async for piece in pieces:
            known = choices.setdefault(piece.index, Piece(piece.index, "", []))
            known.text += piece.text
            known.token_ids += piece.token_ids
            known.finish_reason, known.record = piece.finish_reason, piece.record
    return [choice for _, choice in sorted(choices.items())]


async def _events(
    first: Piece, pieces: AsyncGenerator[Piece, None], telling: GenerateRenderer
) -> AsyncIterator[str]:
    head, piece = telling.head(True), first
    async with aclosing(pieces):
        try:
            while True:
                telling.tokens += len(piece.token_ids)
                yield event({**head, "choices": [telling.choice(piece, True)]})
                try:
                    piece = await anext(pieces)
                except StopAsyncIteration:
                    break
            if telling.usage_last or telling.made.usage:
                yield event({**head, "choices": [], "usage": telling.usage()})
        except TrimtabError as error:
            yield event(error.body())
    yield DONE


async def _unless_left(request: Request, work: Awaitable[Any]) -> Any:
    """The result of `work`, which is given up if the client leaves: each further call costs."""

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.create_task(left())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise NotReady("the client has left.")  # nobody reads this
        return working.result()
    finally:
        leaving.cancel()
        working.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)
