"""An answer that is rewritten while it is sent: JSON as a whole, a stream event by event."""

from collections.abc import Iterable

from starlette.types import Message, Send

Headers = list[tuple[bytes, bytes]]


def with_length(headers: Iterable[tuple[bytes, bytes]], size: int) -> Headers:
    """Headers with another length of the body."""
    kept = [(name, value) for name, value in headers if name != b"content-length"]
    return [*kept, (b"content-length", str(size).encode())]


class Rewritten:
    """The `send` of an ASGI application; subclasses say what becomes of the content."""

    def __init__(self, send: Send) -> None:
        self.forward = send
        self.start: Message = {}
        self.streams = False
        self.buffer = bytearray()

    def whole(self, body: bytes) -> bytes:
        """The body of an answer that is no stream; `self.start` may be changed, but its length."""
        raise NotImplementedError

    def event(self, data: bytes) -> bytes:
        """The JSON object of an event."""
        raise NotImplementedError

    async def send(self, message: Message) -> None:
        """Forward a message of the answer."""
        if message["type"] == "http.response.start":
            self.start = message
            kind = dict(message["headers"]).get(b"content-type", b"")
            self.streams = kind.startswith(b"text/event-stream")
            if self.streams:
                await self.forward(message)
        elif self.streams:
            await self._send_events(message)
        else:
            await self._send_whole(message)

    async def _send_whole(self, message: Message) -> None:
        self.buffer += message.get("body", b"")
        if message.get("more_body", False):
            return
        body = self.whole(bytes(self.buffer))
        self.start["headers"] = with_length(self.start["headers"], len(body))
        await self.forward(self.start)
        await self.forward({"type": "http.response.body", "body": body})

    async def _send_events(self, message: Message) -> None:
        """Forward the events that are complete; at the end of the body, all that is left."""
        scanned = max(len(self.buffer) - 1, 0)
        self.buffer += message.get("body", b"")
        end = self.buffer.rfind(b"\n\n", scanned) + 2
        whole, self.buffer = (
            (self.buffer[:end], self.buffer[end:]) if end > 1 else (b"", self.buffer)
        )
        events = bytes(whole).split(b"\n\n")[:-1]
        body = b"".join(self._event(event) + b"\n\n" for event in events)
        more = message.get("more_body", False)
        if not more:
            body += bytes(self.buffer)
        await self.forward({"type": "http.response.body", "body": body, "more_body": more})

    def _event(self, event: bytes) -> bytes:
        head, separator, data = event.partition(b"data: ")  # the first: text may contain it too
        return head + separator + self.event(data) if data.startswith(b"{") else event
