"""A light HTTP client that can leave at any moment: one connection a request, as raw bytes."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

PHASES = ("in the body", "on admission", "in the stream", "at the last token")
"""Where a client may leave."""


@dataclass
class Answer:
    """What came back; `left` is the phase in which the client left, if it did."""

    status: int = 0
    body: bytes = b""
    left: str | None = None
    events: list[Any] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        """Whether a stream ended as it must: a finish or an error, then [DONE]."""
        *events, end = self.events or [None]
        last = [e for e in events if "error" in e or any(map(_ended, e.get("choices", ())))]
        return end == "[DONE]" and bool(last)


async def _pieces(reader: asyncio.StreamReader, chunked: bool) -> AsyncIterator[bytes]:
    if not chunked:
        yield await reader.read()
        return
    while size := int(await reader.readline() or b"0", 16):
        yield await reader.readexactly(size)
        await reader.readline()


def _event(event: bytes) -> Any:
    text = event.decode().removeprefix("data: ")
    return text if text == "[DONE]" else json.loads(text)


def _ended(choice: dict) -> bool:
    return choice.get("finish_reason") is not None


async def post(port: int, key: str, path: str, fields: dict, leave: str | None = None) -> Answer:
    """Send a request and read its answer, or leave on the way."""
    content = json.dumps(fields).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        f"Authorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    ).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**24)
    answer = Answer(left=leave)
    try:
        if leave == "in the body":
            writer.write(head + content[: len(content) // 2])
            await writer.drain()
            return answer
        writer.write(head + content)
        await writer.drain()
        if leave == "on admission":
            return answer
        status = await reader.readline()
        answer.status = int(status.split()[1]) if status else 0
        headers = b""
        while (line := await reader.readline()).strip():
            headers += line.lower()
        chunked = b"transfer-encoding: chunked" in headers
        async for piece in _pieces(reader, chunked):
            answer.body += piece
            *events, rest = answer.body.split(b"\n\n")
            if not fields.get("stream") or rest:
                continue
            answer.events = [_event(event) for event in events]
            choices = [c for e in answer.events if e != "[DONE]" for c in e.get("choices", ())]
            if leave == "in the stream" and len(answer.events) >= 3:
                return answer
            if leave == "at the last token" and any(map(_ended, choices)):
                return answer
        answer.left = None
        return answer
    except (asyncio.IncompleteReadError, ConnectionError):
        return answer  # cut off: what came is what there is
    finally:
        writer.close()
