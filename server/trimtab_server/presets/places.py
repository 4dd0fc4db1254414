"""Where the requests of each route hold their guidance, on every server."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trimtab.params import FIELDS
from trimtab.xargs import CARRIED, PREFIX, from_xargs
from trimtab_server.presets.preset import sent

Fields = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """The `guidance` object of a body, or the flat `trimtab_*` keys in its place."""

    within: str | None = None
    """The field with the sampling parameters; None: the body itself."""
    flat: str = "vllm_xargs"
    """The field of the sampling parameters with the flat keys."""

    def is_free(self, fields: Fields) -> bool:
        """Whether a body has no guidance."""
        return fields.get("guidance") is None and not self._flat(fields)

    def is_twofold(self, fields: Fields) -> bool:
        """Whether a body has guidance in both forms, which its route refuses."""
        return fields.get("guidance") is not None and bool(self._flat(fields))

    def requested(self, fields: Fields) -> Any:
        """The guidance of a body.

        Raises:
            InvalidGuidance: its flat form is invalid.
        """
        if fields.get("guidance") is not None:
            return fields["guidance"]
        params = from_xargs(self._flat(fields))
        return {} if params is None else sent(params)

    def put(self, fields: Fields, guidance: Mapping[str, Any]) -> Fields:
        """A body with this guidance instead."""
        fields = {**fields, "guidance": dict(guidance)}
        flat = self._flat(fields)
        if flat:
            sampling = self._sampling(fields)
            rest = {key: v for key, v in sampling[self.flat].items() if key not in flat}
            changed = {**sampling, self.flat: rest}
            fields = changed if self.within is None else {**fields, self.within: changed}
        return fields

    def unsteered(self, fields: Fields) -> Fields:
        """A body that the base answers, unless it has guidance."""
        return fields

    def _sampling(self, fields: Fields) -> Fields:
        sampling = fields if self.within is None else fields.get(self.within)
        return sampling if isinstance(sampling, dict) else {}

    def _flat(self, fields: Fields) -> Fields:
        extra = self._sampling(fields).get(self.flat)
        pairs = extra.items() if isinstance(extra, dict) else ()
        return {k: value for k, value in pairs if k.startswith(PREFIX) and k not in CARRIED}


class Plain(Place):
    """The top-level fields of POST /generate, which is always guided."""

    def is_free(self, fields: Fields) -> bool:
        """See Place.is_free; a search needs guidance too."""
        return "search" not in fields and not self.requested(fields)

    def is_twofold(self, fields: Fields) -> bool:
        """See Place.is_twofold."""
        return False

    def requested(self, fields: Fields) -> Any:
        """See Place.requested."""
        return {name: fields[name] for name in FIELDS if name in fields}

    def put(self, fields: Fields, guidance: Mapping[str, Any]) -> Fields:
        """See Place.put."""
        return {**{k: value for k, value in fields.items() if k not in FIELDS}, **guidance}

    def unsteered(self, fields: Fields) -> Fields:
        """See Place.unsteered."""
        return {**fields, "beta": 0} if self.is_free(fields) else fields


PLACES: Mapping[str, Place] = {
    "/generate": Plain(),
    "/v1/chat/completions": Place(),
    "/v1/chat/completions/batch": Place(),
    "/v1/completions": Place(),
    "/v1/responses": Place(),
    "/v1/messages": Place(),
    "/invocations": Place(),
    "/inference/v1/generate": Place("sampling_params", "extra_args"),
}
"""The routes that generate."""
READING = frozenset(
    {
        "/tokenize",
        "/detokenize",
        "/v1/messages/count_tokens",
        "/v1/completions/render",
        "/v1/completions/derender",
        "/v1/chat/completions/render",
        "/v1/chat/completions/derender",
        "/v1/messages/render",
        "/v1/responses/render",
    }
)
"""Routes that only read or write text for a model: a preset's name is its model's there."""
