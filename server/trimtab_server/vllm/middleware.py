"""The `guidance` object on vLLM's own routes.

1. A body's `guidance` is parsed, completed with default scorers, and moved to vLLM's field for
   extra arguments (flat form). Flat `trimtab_*` keys from a client pass the same parser.
2. The request passes to vLLM's route, with an open Exchange.
3. Each choice's record is added to the answer as `guidance`, in the JSON or in the server-sent
   event that ends the choice, and their summary to its usage and head (summaries.py). A scorer's
   fault replaces the answer by an error.

A request without guidance passes unchanged, to the base model. Routes that are not guided
(guided_routes.py) refuse a body with guidance.
"""

import json
from collections.abc import Mapping
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from trimtab.engine import Version
from trimtab.errors import InvalidGuidance, TrimtabError
from trimtab.params import GuidanceParams
from trimtab.xargs import CARRIED, PREFIX, from_xargs, to_xargs
from trimtab_server import bodies, summaries
from trimtab_server.cap_settings import NARROW, Caps
from trimtab_server.caps import check_caps
from trimtab_server.errors import response
from trimtab_server.limits import replay
from trimtab_server.placement import flat, refuse_wrapped
from trimtab_server.rewriting import Rewritten, with_length
from trimtab_server.vllm.guided_routes import (
    GUIDED,
    Route,
    conversations,
    misplaced,
    refuse_unguidable,
)
from trimtab_server.vllm.items import check_items
from trimtab_server.vllm.records import Exchange, begin, converse, using_versions

OWN = frozenset({"/generate", "/v1/scorers"})
"""Our own routes, which read their bodies themselves."""
FORMS = (b"multipart/form-data", b"application/x-www-form-urlencoded")
FINAL_EVENTS = frozenset({"response.completed", "response.incomplete", "message_delta"})
"""Events of the routes without choices (responses, messages) that carry the records."""


class GuidanceMiddleware:
    """ASGI middleware: reads `guidance` from requests and writes records into answers."""

    def __init__(
        self,
        app: ASGIApp,
        scorers: Mapping[str, Version],
        default: Mapping[str, float] | None,
        caps: Caps = NARROW,
    ) -> None:
        self.app = app
        self.caps = caps
        self.scorers = scorers
        self.default = default

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        with using_versions():
            path = _path(scope) if scope["type"] == "http" else ""
            if not path or _own(path) or scope["method"] in ("GET", "HEAD", "OPTIONS"):
                await self.app(scope, receive, send)
                return
            body = (await receive()).get("body", b"")
            try:
                if path in GUIDED and scope["method"] == "POST":
                    scope, body, send = await self._read(scope, GUIDED[path], body, send)
                else:
                    _refuse_guidance(scope, body)
            except TrimtabError as error:
                await response(error)(scope, receive, send)
                return
            await self.app(scope, replay(body, receive), send)

    async def _read(
        self, scope: Scope, route: Route, body: bytes, send: Send
    ) -> tuple[Scope, bytes, Send]:
        """The scope and body for vLLM's route, and the `send` for its answer."""
        bodies.check_declared(scope)
        fields = bodies.parsed(scope, body)
        sampling = route.sampling(fields)
        check_caps(fields, self.caps)
        check_caps(sampling, self.caps)
        if route.items:
            check_items(fields)
        guidance = self._move(fields, route)
        if guidance is None:
            return scope, body, send
        body = json.dumps(fields).encode()
        exchange = begin(self.scorers, guidance)
        if exchange.reading:
            state = scope["app"].state
            await converse(
                state.trimtab.engine.client, exchange, conversations(route, fields, state)
            )
        headers = with_length(scope["headers"], len(body))
        answer = _GuidedAnswer(send, exchange, sampling.get("n") or 1)
        return {**scope, "headers": headers}, body, answer.send

    def _move(self, fields: dict[str, Any], route: Route) -> GuidanceParams | None:
        """Move `guidance` to the flat keys; None if the request has none."""
        refuse_wrapped(fields)
        if misplaced(fields, route):
            place = route.flat if route.within is None else f"{route.within}.{route.flat}"
            raise InvalidGuidance(f"{PREFIX}* keys belong in {place} here, or send guidance.")
        sampling = route.sampling(fields)
        extra = sampling.get(route.flat)
        flat = {
            key: value
            for key, value in (extra.items() if isinstance(extra, dict) else ())
            if key.startswith(PREFIX)
        }
        for key in CARRIED:
            if key in flat:
                raise InvalidGuidance(f"{key} is set by the server alone; leave it out.")
        requested = fields.pop("guidance", None)
        if requested is not None and flat:
            raise InvalidGuidance(
                f"guidance came both as an object and as {PREFIX}* keys of {route.flat}; "
                "send one of the two.",
                param="guidance",
            )
        params = from_xargs(flat) if requested is None else GuidanceParams.parse(requested)
        if params is None:
            return None
        refuse_unguidable({**sampling, **fields})
        params = params.resolve(self.scorers, self.default)
        if extra is not None and not isinstance(extra, dict):
            raise InvalidGuidance(f"{route.flat} must be an object.", param=route.flat)
        route.put(fields, {**(extra or {}), **to_xargs(params)})
        return params


def _own(path: str) -> bool:
    return path in OWN or path.startswith("/v1/presets/")


def _path(scope: Scope) -> str:
    """The path that is routed: without the root path."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path.removeprefix(root) if path.startswith(f"{root}/") else path


def _refuse_guidance(scope: Scope, body: bytes) -> None:
    """Refuse a body with guidance on a route that is not guided.

    Raises:
        InvalidGuidance: the body has guidance.
        InvalidRequest: the body is declared as JSON but is not JSON.
    """
    declared = dict(scope["headers"]).get(b"content-type", b"")
    if declared.startswith(FORMS):
        requested = b'name="guidance"' in body or PREFIX.encode() in body
    elif body and bodies.may_be_json(scope):
        fields = bodies.parsed(scope, body)
        refuse_wrapped(fields)
        requested = misplaced(fields, None) or flat(fields)
    else:
        requested = False
    if requested:
        raise InvalidGuidance(
            f"guidance does not go with this route; leave it out, or use {', '.join(GUIDED)} or "
            "/generate.",
            param="guidance",
        )


class _GuidedAnswer(Rewritten):
    """Writes an Exchange into the answer of one request, while it is sent."""

    def __init__(self, send: Send, exchange: Exchange, choices: int) -> None:
        super().__init__(send)
        self.exchange = exchange
        self.choices = choices

    def whole(self, body: bytes) -> bytes:
        if self.exchange.fault is not None:
            self.start["status"] = self.exchange.fault.status
            body = json.dumps(self.exchange.fault.body()).encode()
        elif self.start["status"] == 200:
            answer = json.loads(body)
            if isinstance(answer, dict):  # null if the client has disconnected
                self._attach(answer, final=True)
                body = json.dumps(answer, ensure_ascii=False).encode()
        self.start["headers"] = [*self.start["headers"], *self._header()]
        return body

    def event(self, data: bytes) -> bytes:
        chunk = json.loads(data)
        if self.exchange.fault is not None and "error" in chunk:
            chunk = self.exchange.fault.body()
        else:
            self._attach(chunk, final=chunk.get("type") in FINAL_EVENTS)
        return json.dumps(chunk, ensure_ascii=False).encode()

    def _header(self) -> list[tuple[bytes, bytes]]:
        text = summaries.header(self.exchange.records) if self.start["status"] == 200 else None
        return [] if text is None else [(summaries.HEADER.lower().encode(), text.encode())]

    def _attach(self, answer: dict[str, Any], final: bool) -> None:
        if final or answer.get("choices") == []:
            summaries.add_usage(answer, self.exchange.records)
        if "choices" in answer:
            for choice in answer["choices"]:
                if choice.get("finish_reason") is not None:
                    call, index = divmod(choice["index"], self.choices)
                    choice["guidance"] = self.exchange.record(call, index)
        elif final:
            answer["guidance"] = self.exchange.records
