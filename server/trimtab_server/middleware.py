"""The `guidance` object on vLLM's own routes.

1. A body's `guidance` is parsed, its scorers filled in, and moved into `vllm_xargs` (flat form);
   flat `trimtab_*` keys that a client sends itself go through the same parser.
2. The request then goes to vLLM's route, with an open Exchange.
3. The answer gets each choice's record back as `guidance`, in JSON or in the server-sent event
   that ends the choice; a scorer's fault becomes the answer's error.

A request that asks for no guidance passes untouched: it is the base model.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trimtab.errors import InvalidGuidance, TrimtabError
from trimtab.params import CARRIED, PREFIX, GuidanceParams
from trimtab_server import strict_json
from trimtab_server.caps import check_caps
from trimtab_server.errors import response
from trimtab_server.guided import Exchange, begin, using_versions
from trimtab_server.items import check_items
from trimtab_server.limits import replay
from trimtab_server.state import Version

ROUTES = frozenset(
    {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
        "/invocations",
    }
)
FINAL_EVENTS = frozenset({"response.completed", "response.incomplete", "message_delta"})
"""Events of the routes without choices (responses, messages) that carry the records."""


class Guidance:
    """ASGI middleware: reads `guidance` out of requests, and writes records into answers."""

    def __init__(
        self, app: ASGIApp, scorers: Mapping[str, Version], default: Mapping[str, float] | None
    ) -> None:
        self.app = app
        self.scorers = scorers
        self.default = default

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        with using_versions():
            if _takes_guidance(scope):
                await self._serve(scope, receive, send)
            else:
                await self.app(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            strict_json.check_declared(scope)
            body = (await receive()).get("body", b"")
            fields = strict_json.parsed(scope, body)
            check_caps(fields)
            if scope["path"].endswith("/v1/responses"):
                check_items(fields)
            guidance = self._move(fields)
        except TrimtabError as error:
            await response(error)(scope, receive, send)
            return
        if guidance is None:
            await self.app(scope, replay(body, receive), send)
            return
        body = json.dumps(fields).encode()
        exchange = begin(self.scorers, guidance, _turns(fields))
        choices = fields.get("n")
        answer = _Answer(send, exchange, choices if isinstance(choices, int) else 1)
        headers = _with_length(scope["headers"], len(body))
        await self.app({**scope, "headers": headers}, replay(body, receive), answer.send)

    def _move(self, fields: dict[str, Any]) -> GuidanceParams | None:
        """Move `guidance` into `vllm_xargs`; None if the request asks for none."""
        xargs = fields.get("vllm_xargs")
        flat = {
            key: value
            for key, value in (xargs.items() if isinstance(xargs, dict) else ())
            if key.startswith(PREFIX)
        }
        for key in CARRIED:
            if key in flat:
                raise InvalidGuidance(f"{key} is set by the server alone; leave it out.")
        asked = fields.pop("guidance", None)
        if asked is not None and flat:
            raise InvalidGuidance(
                f"guidance came both as an object and as {PREFIX}* keys of vllm_xargs; "
                "send one of the two.",
                param="guidance",
            )
        params = GuidanceParams.from_xargs(flat) if asked is None else GuidanceParams.parse(asked)
        if params is None:
            return None
        _refuse_unguidable(fields)
        params = params.resolve(self.scorers, self.default)
        if asked is not None and xargs is not None and not isinstance(xargs, dict):
            raise InvalidGuidance("vllm_xargs must be an object.", param="vllm_xargs")
        fields["vllm_xargs"] = {**(xargs or {}), **params.to_xargs()}
        return params


def _turns(fields: Mapping[str, Any]) -> list[dict[str, str]] | None:
    """A request's messages as text alone; None if it has none. vLLM's route checks them."""
    turns = []
    messages = fields.get("messages")
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, list):
            content = "".join(str(part.get("text", "")) for part in content if "text" in part)
        turns.append({"role": str(message.get("role", "user")), "content": str(content or "")})
    return turns or None


def _takes_guidance(scope: Scope) -> bool:
    if scope["type"] != "http" or scope["method"] != "POST":
        return False
    return scope["path"].removeprefix(scope.get("root_path", "")) in ROUTES


def _refuse_unguidable(fields: Mapping[str, Any]) -> None:
    for name in ("use_beam_search", "prompt_embeds"):
        if fields.get(name):
            raise InvalidGuidance(
                f"guidance cannot steer a request with {name}; leave one of the two out.",
                param=name,
            )
    for name in ("messages", "input"):
        messages = fields.get(name)
        for message in messages if isinstance(messages, list) else ():
            content = message.get("content") if isinstance(message, dict) else None
            for part in content if isinstance(content, list) else ():
                kind = str(part.get("type", "")) if isinstance(part, dict) else ""
                if any(word in kind for word in ("image", "audio", "video", "file", "document")):
                    raise InvalidGuidance(
                        "guidance steers text alone; leave out guidance, or the images and sounds.",
                        param=name,
                    )


def _with_length(headers: Iterable[tuple[bytes, bytes]], size: int) -> list[tuple[bytes, bytes]]:
    kept = [(name, value) for name, value in headers if name != b"content-length"]
    return [*kept, (b"content-length", str(size).encode())]


class _Answer:
    """Writes an Exchange into the answer of one request, while it is sent."""

    def __init__(self, send: Send, exchange: Exchange, choices: int) -> None:
        self.forward = send
        self.exchange = exchange
        self.choices = choices
        self.start: Message = {}
        self.buffer = bytearray()
        self.write: Callable[[Message], Any] = self._json

    async def send(self, message: Message) -> None:
        if message["type"] != "http.response.start":
            await self.write(message)
            return
        kind = dict(message["headers"]).get(b"content-type", b"")
        if kind.startswith(b"text/event-stream"):
            self.write = self._events
            await self.forward(message)
        else:
            self.start = message

    async def _json(self, message: Message) -> None:
        self.buffer += message.get("body", b"")
        if message.get("more_body", False):
            return
        if self.exchange.fault is not None:
            self.start["status"] = self.exchange.fault.status
            self.buffer[:] = json.dumps(self.exchange.fault.body()).encode()
        elif self.start["status"] == 200:
            answer = json.loads(self.buffer)
            if isinstance(answer, dict):  # null, where the client has left
                self._attach(answer, final=True)
                self.buffer[:] = json.dumps(answer, ensure_ascii=False).encode()
        self.start["headers"] = _with_length(self.start["headers"], len(self.buffer))
        await self.forward(self.start)
        await self.forward({"type": "http.response.body", "body": bytes(self.buffer)})

    async def _events(self, message: Message) -> None:
        searched = max(len(self.buffer) - 1, 0)
        self.buffer += message.get("body", b"")
        end = self.buffer.rfind(b"\n\n", searched) + 2
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
        head, found, data = event.partition(b"data: ")  # the first: text may hold it too
        if not found or not data.startswith(b"{"):
            return event
        chunk = json.loads(data)
        if self.exchange.fault is not None and "error" in chunk:
            chunk = self.exchange.fault.body()
        else:
            self._attach(chunk, final=chunk.get("type") in FINAL_EVENTS)
        return head + found + json.dumps(chunk, ensure_ascii=False).encode()

    def _attach(self, answer: dict[str, Any], final: bool) -> None:
        if "choices" in answer:
            for choice in answer["choices"]:
                if choice.get("finish_reason") is not None:
                    call, index = divmod(choice["index"], self.choices)
                    choice["guidance"] = self.exchange.record(call, index)
        elif final:
            answer["guidance"] = [
                record for call in self.exchange.calls for record in call.values()
            ]
