"""Presets as models of their own, on the routes of every server.

1. A body whose `model` is MODEL@PRESET passes on with MODEL, and with the preset's guidance under
   the request's own, as if the client had sent it. The answer names MODEL@PRESET.
2. A request that names no preset gets the one that is bound to its API key; without guidance of its
   own, it gets the default preset.
3. `GET /v1/models` lists each model with each preset, and `GET /v1/models/{name}` shows one.
"""

import json
from collections.abc import Mapping
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trimtab.errors import InvalidGuidance, TrimtabError
from trimtab.params import GuidanceParams
from trimtab_server.allowed import route_path
from trimtab_server.auth import KEY
from trimtab_server.bodies import PARSED
from trimtab_server.errors import UnknownModel, response
from trimtab_server.limits import replay
from trimtab_server.presets.naming import NamedAnswer
from trimtab_server.presets.places import PLACES, READING
from trimtab_server.presets.preset import BASE, Preset, sent
from trimtab_server.state import State

MODELS = "/v1/models"
Fields = dict[str, Any]


class PresetModels:
    """ASGI middleware: see the module."""

    def __init__(self, app: ASGIApp, state: State) -> None:
        self.app = app
        self.state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. Sizes has parsed its body."""
        path = route_path(scope) if scope["type"] == "http" else ""
        name = path.removeprefix(f"{MODELS}/") if path.startswith(f"{MODELS}/") else ""
        try:
            if path and scope["method"] == "GET" and (name or path == MODELS):
                await self._show_models(name, path, scope, receive, send)
                return
            if path and scope["method"] == "POST" and PARSED in scope:
                model, fields = self._read(path, scope)
                if fields is not scope[PARSED]:
                    scope, receive = await _with_body(scope, receive, fields)
                if model is not None:
                    send = NamedAnswer(send, model).send
        except TrimtabError as error:
            await response(error)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _read(self, path: str, scope: Scope) -> tuple[str | None, Fields]:
        """The model to name in the answer, if it names a preset; and the body to pass on.

        Raises:
            UnknownModel: the body names a preset that its key may not use.
            InvalidGuidance: the request's own guidance does not go with the preset (see
                Preset.combine), or a preset does not go with the route.
        """
        fields: Fields = scope[PARSED]
        presets, key = self.state.presets, scope.get(KEY)
        model, name = self._split(path, fields.get("model"), presets.visible(key))
        named = None
        if name is not None:
            named, fields = fields["model"], {**fields, "model": model}
        place = PLACES.get(path)
        if place is None:
            if name not in (None, BASE) and path not in READING:
                raise InvalidGuidance(
                    f"a preset does not go with this route; leave it out, or use "
                    f"{', '.join(PLACES)}.",
                    param="model",
                )
            return named, fields
        if name == BASE:
            return named, place.unsteered(fields)
        name = name or presets.bound(key)
        if name is None and place.is_free(fields):
            name = presets.default
        if name is None or place.is_twofold(fields):
            return named, fields
        guidance = self._guidance(name, presets.all[name], place.requested(fields))
        return named, place.put(fields, guidance)

    def _split(
        self, path: str, model: Any, visible: Mapping[str, Preset]
    ) -> tuple[Any, str | None]:
        """`MODEL@PRESET` → (MODEL, PRESET); (model, None) for another model.

        Raises:
            UnknownModel: MODEL is served here, and has no such preset for this key.
        """
        if not isinstance(model, str) or "@" not in model or model == self.state.model:
            return model, None
        served, _, name = model.rpartition("@")
        if name == BASE or name in visible:
            return served, name
        if served == self.state.model or path == "/generate":  # which reads no other model
            raise _unknown()
        return model, None  # the route knows it, or refuses it

    def _guidance(self, name: str, preset: Preset, requested: Any) -> Fields:
        """A preset's guidance, overridden by what a request sent.

        Raises:
            InvalidGuidance: see Preset.combine; or a scorer of the preset is not loaded.
        """
        own = GuidanceParams.parse(requested)
        guidance = sent(preset.combine(name, own))
        for field in {"scorers", "floors", "ceilings", "utility"} - sent(own).keys():
            for scorer in guidance.get(field, ()):
                if scorer not in self.state.scorers:
                    raise InvalidGuidance(
                        f"preset '{name}' cannot steer: its scorer '{scorer}' is not loaded; use "
                        "another preset, or load the scorer.",
                        param="model",
                        code="scorer_not_found",
                    )
        return guidance

    async def _show_models(
        self, name: str, path: str, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Answer GET /v1/models, or /v1/models/{name}, from the application's own list."""
        names = self._names(scope)
        if not (name or names):
            await self.app(scope, receive, send)
            return
        root = scope["path"].removesuffix(path)
        listing = {**scope, "path": root + MODELS, "raw_path": (root + MODELS).encode()}
        messages: list[Message] = []

        async def collect(message: Message) -> None:
            messages.append(message)

        await self.app(listing, receive, collect)
        if messages[0]["status"] != 200:
            for message in messages:
                await send(message)
            return
        answer = json.loads(b"".join(message.get("body", b"") for message in messages[1:]))
        cards = {card["id"]: card for card in answer["data"]}
        for card in answer["data"]:
            for preset in names if not name else {*names, BASE}:
                full = f"{card['id']}@{preset}"
                cards.setdefault(full, {**card, "id": full, "parent": card["id"]})
        if name and name not in cards:
            raise _unknown()
        shown = cards[name] if name else {**answer, "data": [*cards.values()]}
        await JSONResponse(shown)(scope, receive, send)

    def _names(self, scope: Scope) -> list[str]:
        """The presets that a request's key may name; BASE too, if the key has one anyway."""
        presets, key = self.state.presets, scope.get(KEY)
        steered = presets.default is not None or presets.bound(key) is not None
        return [*presets.visible(key), *([BASE] if steered else [])]


async def _with_body(scope: Scope, receive: Receive, fields: Fields) -> tuple[Scope, Receive]:
    """A request with another body."""
    await receive()  # the old one
    body = json.dumps(fields).encode()
    scope = {**scope, "headers": [*scope["headers"]], PARSED: fields}
    MutableHeaders(scope=scope)["content-length"] = str(len(body))
    return scope, replay(body, receive)


def _unknown() -> UnknownModel:
    return UnknownModel(
        "there is no model of that name here. GET /v1/models lists them.", param="model"
    )
