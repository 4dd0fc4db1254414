"""Answers: pieces of choices in the shape of each route, whole or streamed."""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from trimtab.engine import GenerationRequest, Piece, Record
from trimtab.errors import NotReady, TrimtabError
from trimtab_server import summaries
from trimtab_server.events import DONE, event


@dataclass
class GenerateRenderer:
    """The shape of POST /generate."""

    model: str
    requests: Sequence[GenerationRequest]
    include_usage: bool = True  # whether a stream ends with the token counts
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))
    prompt_tokens: dict[int, int] = field(default_factory=dict)  # by prompt
    completion_tokens: int = 0
    spent: dict[str, Any] = field(default_factory=dict)
    records: dict[int, Record | None] = field(default_factory=dict)  # by choice that has ended

    def head(self, stream: bool) -> dict[str, Any]:
        """The first fields of an answer or an event."""
        return {"id": f"gen-{self.id}", "model": self.model}

    def count(self, piece: Piece) -> None:
        """Count the tokens of a piece."""
        prompt = piece.index // self.requests[0].sampling.n
        self.prompt_tokens[prompt] = max(self.prompt_tokens.get(prompt, 0), piece.prompt_tokens)
        self.completion_tokens += len(piece.token_ids)
        if piece.spent is not None:
            self.spent = {"search": dict(piece.spent)}
        if piece.finish_reason is not None:
            self.records[piece.index] = piece.record

    def choice(self, piece: Piece, stream: bool) -> dict[str, Any]:
        """One choice, or its newest part."""
        fields: dict[str, Any] = {
            "index": piece.index,
            "text": piece.text,
            "token_ids": piece.token_ids,
            "finish_reason": piece.finish_reason,
        }
        if piece.logprobs is not None:
            fields["logprobs"] = piece.logprobs
        if piece.search is not None:
            fields["search"] = piece.search
        if piece.trace is not None:
            fields["trace"] = piece.trace
        return self._with_record(fields, piece)

    def _with_record(self, fields: dict[str, Any], piece: Piece) -> dict[str, Any]:
        if piece.finish_reason is not None and self.requests[0].guidance is not None:
            fields["guidance"] = piece.record
        return fields

    def usage(self) -> dict[str, Any]:
        """Token counts so far. Without a tokenizer, an upstream's prompt counts as one token."""
        prompt = sum(self.prompt_tokens.values())
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self.completion_tokens,
            "total_tokens": prompt + self.completion_tokens,
            **self.spent,
        }


class CompletionRenderer(GenerateRenderer):
    """The shape of /v1/completions."""

    def usage(self) -> dict[str, Any]:
        """See GenerateRenderer.usage; with `guidance`, for clients that keep no other field."""
        answer = {"usage": super().usage()}
        summaries.add_usage(answer, list(self.records.values()))
        return answer["usage"]

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
        fields = {
            "index": piece.index,
            "text": piece.text,
            "logprobs": None,
            "finish_reason": piece.finish_reason,
        }
        return self._with_record(fields, piece)


class ChatRenderer(CompletionRenderer):
    """The shape of /v1/chat/completions."""

    def head(self, stream: bool) -> dict[str, Any]:
        """See GenerateRenderer.head."""
        kind = "chat.completion.chunk" if stream else "chat.completion"
        return {**super().head(stream), "id": f"chatcmpl-{self.id}", "object": kind}

    def choice(self, piece: Piece, stream: bool) -> dict[str, Any]:
        """See GenerateRenderer.choice."""
        message = {"role": "assistant", "content": piece.text}
        fields = {
            "index": piece.index,
            "delta" if stream else "message": message,
            "logprobs": None,
            "finish_reason": piece.finish_reason,
        }
        return self._with_record(fields, piece)


async def answer(
    request: Request, pieces: AsyncGenerator[Piece, None], renderer: GenerateRenderer
) -> Response:
    """The answer to a request. An error before the first piece keeps its own status."""
    if renderer.requests[0].stream:
        first = await unless_disconnected(request, anext(pieces))
        return StreamingResponse(_events(first, pieces, renderer), media_type="text/event-stream")
    choices = await unless_disconnected(request, _whole(pieces, renderer))
    body = [renderer.choice(piece, False) for piece in choices]
    record = summaries.header(list(renderer.records.values()))
    return JSONResponse(
        {**renderer.head(False), "choices": body, "usage": renderer.usage()},
        headers=None if record is None else {summaries.HEADER: record},
    )


async def _whole(pieces: AsyncGenerator[Piece, None], renderer: GenerateRenderer) -> list[Piece]:
    """All choices in order, each as one piece."""
    choices: dict[int, Piece] = {}
    async with aclosing(pieces):
        async for piece in pieces:
            renderer.count(piece)
            known = choices.get(piece.index)
            if known is not None:
                piece.text = known.text + piece.text
                piece.token_ids = known.token_ids + piece.token_ids
                if known.logprobs is not None:
                    piece.logprobs = known.logprobs + (piece.logprobs or [])
            choices[piece.index] = piece
    return [choice for _, choice in sorted(choices.items())]


async def _events(
    first: Piece, pieces: AsyncGenerator[Piece, None], renderer: GenerateRenderer
) -> AsyncIterator[str]:
    head, piece = renderer.head(True), first
    async with aclosing(pieces):
        try:
            while True:
                renderer.count(piece)
                yield event({**head, "choices": [renderer.choice(piece, True)]})
                try:
                    piece = await anext(pieces)
                except StopAsyncIteration:
                    break
            if renderer.include_usage:
                yield event({**head, "choices": [], "usage": renderer.usage()})
        except TrimtabError as error:
            yield event(error.body())
    yield DONE


async def unless_disconnected(request: Request, work: Awaitable[Any]) -> Any:
    """The result of `work`, which is cancelled if the client disconnects."""

    async def disconnected() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, disconnecting = asyncio.ensure_future(work), asyncio.create_task(disconnected())
    try:
        await asyncio.wait({working, disconnecting}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise NotReady("the client has disconnected.")  # nobody reads this
        return working.result()
    finally:
        disconnecting.cancel()
        working.cancel()
        await asyncio.gather(working, disconnecting, return_exceptions=True)
