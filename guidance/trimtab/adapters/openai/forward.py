"""Requests without guidance, forwarded whole: one call, whose answer is passed on as it comes.

The upstream answers with all that it can do: tools, JSON schemas, images, streams. A call is not
retried: the client sees what happened, and may send it again. As elsewhere, no error contains the
upstream's text.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Mapping
from contextlib import aclosing
from typing import Any

import httpx

from trimtab.adapters.openai.client import Client
from trimtab.errors import (
    InvalidRequest,
    TrimtabError,
    UpstreamBusy,
    UpstreamFailed,
    UpstreamTimeout,
)
from trimtab_models.retries import retry_after

REFUSALS = frozenset({400, 404, 405, 409, 413, 415, 422})
"""Statuses that are the request's fault. 401 and 403 are not: the key is the server's."""
KINDS = ("application/json", "text/event-stream")


async def forward(
    client: Client, path: str, body: Mapping[str, Any], headers: Mapping[str, str], seconds: float
) -> tuple[str, AsyncGenerator[bytes, None]]:
    """POST a body to the upstream; the content type of its answer, and the answer in chunks.

    seconds: for the whole answer. The chunks must be read or closed.

    Raises:
        InvalidRequest: the upstream refuses the request.
        UpstreamBusy: the upstream is at its limit.
        UpstreamFailed, UpstreamTimeout: it fails, or its answer is neither JSON nor a stream.
    """
    answer = _answer(client, path, body, headers, seconds)
    kind = await anext(answer)
    return kind.decode(), answer


async def _answer(
    client: Client, path: str, body: Mapping[str, Any], headers: Mapping[str, str], seconds: float
) -> AsyncGenerator[bytes, None]:
    """The content type, then the chunks. Errors may come in the middle of them, too."""
    deadline = asyncio.get_running_loop().time() + seconds
    async with aclosing(_chunks(client, path, body, headers)) as chunks:
        while True:
            # Around each chunk alone: the first may be awaited in another task than the rest.
            try:
                async with asyncio.timeout_at(deadline):
                    chunk = await anext(chunks)
            except StopAsyncIteration:
                break
            except (TimeoutError, httpx.TimeoutException):
                message = f"the answer was not whole after {seconds:g} seconds."
                raise _counted(client, "timeout", UpstreamTimeout(message)) from None
            except httpx.TransportError:
                message = "the upstream cannot be reached, or its connection broke."
                raise _counted(client, "connection", UpstreamFailed(message)) from None
            yield chunk
    client.failing = False
    client.on_call("ok")


async def _chunks(
    client: Client, path: str, body: Mapping[str, Any], headers: Mapping[str, str]
) -> AsyncGenerator[bytes, None]:
    sent = {"Accept-Encoding": "identity", **headers}
    async with client.slots, client.http.stream("POST", path, json=body, headers=sent) as answer:
        kind = answer.headers.get("content-type", "")
        if answer.status_code != 200:
            raise _refusal(client, answer)
        packed = answer.headers.get("content-encoding", "identity") != "identity"
        if packed or not kind.lower().startswith(KINDS):
            message = "the upstream's answer is neither JSON nor a stream of events."
            raise _counted(client, "unusable", UpstreamFailed(message))
        yield kind.encode()
        assert isinstance(answer.stream, AsyncIterable)
        async for chunk in answer.stream:
            yield chunk


def _refusal(client: Client, answer: httpx.Response) -> TrimtabError:
    status = answer.status_code
    if status == 429:
        after = retry_after(answer.headers.get("retry-after"))
        client.on_call("limited")
        return UpstreamBusy("the upstream is busy; send the request again later.", after=after)
    if status in REFUSALS:
        client.on_call("refused")
        return InvalidRequest(f"the upstream refuses this request (HTTP status {status}).")
    error = UpstreamFailed(f"the upstream answered with HTTP status {status}.")
    return _counted(client, "refused" if status < 500 else "failed", error)


def _counted(client: Client, outcome: str, error: TrimtabError) -> TrimtabError:
    client.failing = True
    client.on_call(outcome)
    return error
