"""The name of a preset's model in an answer, while it is sent."""

import json
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import Message, Send


class NamedAnswer:
    """Writes the model that a request named into its answer, in the JSON or in each event.

    An answer, a stored response or a message names the model that generated it, at its top level.
    """

    def __init__(self, send: Send, model: str) -> None:
        self.forward = send
        self.model = model
        self.start: Message | None = None  # of a JSON answer whose body is incomplete
        self.streams = False
        self.buffer = bytearray()

    async def send(self, message: Message) -> None:
        """Forward a message of the answer."""
        if message["type"] == "http.response.start":
            kind = dict(message["headers"]).get(b"content-type", b"")
            self.streams = kind.startswith(b"text/event-stream")
            if message["status"] == 200 and kind.startswith(b"application/json"):
                self.start = message
                return
        elif message["type"] == "http.response.body" and self.start is not None:
            await self._json(self.start, message)
            return
        elif message["type"] == "http.response.body" and self.streams:
            message = {**message, "body": self._events(message)}
        await self.forward(message)

    async def _json(self, start: Message, message: Message) -> None:
        self.buffer += message.get("body", b"")
        if message.get("more_body", False):
            return
        body = self._renamed(bytes(self.buffer))
        MutableHeaders(raw=start["headers"])["content-length"] = str(len(body))
        await self.forward(start)
        await self.forward({"type": "http.response.body", "body": body})

    def _events(self, message: Message) -> bytes:
        """The events that are complete, renamed; at the end of the body, all that is left."""
        self.buffer += message.get("body", b"")
        if message.get("more_body", False):
            head, separator, rest = self.buffer.rpartition(b"\n\n")
            whole, self.buffer = bytes(head + separator), rest
        else:
            whole = bytes(self.buffer)
        return b"\n\n".join(map(self._event, whole.split(b"\n\n")))

    def _event(self, event: bytes) -> bytes:
        head, separator, data = event.partition(b"data: ")  # the first: text may contain it too
        return head + separator + self._renamed(data) if data.startswith(b"{") else event

    def _renamed(self, content: bytes) -> bytes:
        if b'"model"' not in content:
            return content
        answer = json.loads(content)
        for one in answer if isinstance(answer, list) else [answer]:
            self._rename(one)
        return json.dumps(answer, ensure_ascii=False).encode()

    def _rename(self, answer: Any) -> None:
        if not isinstance(answer, dict):
            return
        for owner in (answer, answer.get("response"), answer.get("message")):
            if isinstance(owner, dict) and isinstance(owner.get("model"), str):
                owner["model"] = self.model
