"""One preset: a guidance, the bounds of what a request may set itself, and an optional API key."""

import hashlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from trimtab import reasons
from trimtab.errors import InvalidGuidance, InvalidRequest
from trimtab.params import FIELDS, NAME, GuidanceParams, Number

BASE = "base"
"""The reserved name: MODEL@base is the model without a preset."""
RANGED = ("beta", "kl_budget", "scorers", "floors", "ceilings", "caution", "k", "mass")
"""Fields whose bound may be a range; of several numbers by scorer, it holds for each."""
FREE = ("trace", "paper")
"""Fields without a bound: `trace` steers nothing, `paper` only stands for k, mass and tail."""
EXCLUDES = {
    "kl_budget": ("beta",),
    "beta": ("kl_budget",),
    "scorers": ("caution",),  # it may name those that are replaced
}
"""Field of a request → fields of the preset that cannot be combined with it, and are dropped."""

Bound = Annotated[list[Number], Field(min_length=2, max_length=2)] | Literal["any"]


def check_name(name: str) -> None:
    """Check a preset's name.

    Raises:
        ValueError: it is reserved, or has other characters than a scorer's name.
    """
    if name == BASE:
        raise ValueError(f"the name '{BASE}' is reserved for the model without a preset")
    if not NAME.fullmatch(name):
        raise ValueError(
            "a preset's name has 1 to 64 characters of a-z, 0-9, '_' and '-', the first a letter "
            "or digit"
        )


def sent(params: GuidanceParams) -> dict[str, Any]:
    """The fields that were sent, without nulls."""
    return params.model_dump(exclude_unset=True, exclude_none=True)


class Preset(BaseModel):
    """A guidance with bounds."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    guidance: GuidanceParams = Field(description="the guidance, with the fields of a request")
    bounds: dict[str, Bound] | None = Field(
        None,
        description='what a request may set: field → [low, high] or "any"; null: every field',
    )
    key_sha256: str | None = Field(
        None,
        pattern="^[0-9a-f]{64}$",
        description="SHA-256 of the API key that the preset is bound to; `key` gives the key",
    )

    @model_validator(mode="before")
    @classmethod
    def _hash_key(cls, fields: Any) -> Any:
        """Replace `key` by its digest: no preset holds a key."""
        if not isinstance(fields, Mapping) or "key" not in fields:
            return fields
        key, rest = fields["key"], {name: v for name, v in fields.items() if name != "key"}
        if key is None:
            return rest
        if not isinstance(key, str) or not key.isascii() or not key or "key_sha256" in rest:
            raise ValueError("key must be one of the server's API keys, without key_sha256")
        return {**rest, "key_sha256": hashlib.sha256(key.encode()).hexdigest()}

    @model_validator(mode="after")
    def _check_bounds(self) -> Self:
        for field, bound in (self.bounds or {}).items():
            if field not in FIELDS or field in FREE:
                names = ", ".join(name for name in FIELDS if name not in FREE)
                raise ValueError(f"bounds has a field that is not one of {names}")
            if bound != "any" and field not in RANGED:
                raise ValueError(f'the bound of {field} must be "any"')
            if bound != "any" and bound[0] > bound[1]:
                raise ValueError(f"the bound of {field} must be [low, high], low first")
        return self

    @classmethod
    def parse(cls, fields: Any) -> "Preset":
        """Check a preset's fields.

        Raises:
            InvalidRequest: naming at most three fields, never their values.
            InvalidGuidance: the same for those of its guidance.
        """
        if isinstance(fields, Mapping) and isinstance(fields.get("guidance"), Mapping):
            GuidanceParams.parse(fields["guidance"])  # names the field inside
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            known = (*cls.model_fields, *FIELDS)
            raise InvalidRequest(
                f"Invalid preset: {reasons.fields(error, known)}.",
                param=reasons.first(error, known),
            ) from None

    def stored(self) -> dict[str, Any]:
        """The fields as they are saved."""
        rest = self.model_dump(include={"bounds", "key_sha256"}, exclude_none=True)
        return {"guidance": sent(self.guidance), **rest}

    def combine(self, name: str, requested: GuidanceParams) -> GuidanceParams:
        """This preset under its name, overridden field by field by what a request sent.

        Raises:
            InvalidGuidance: a field of the request is out of bounds, or does not go with the
                rest of the preset.
        """
        own = sent(requested)
        for field, value in own.items():
            self._check_bound(name, field, value)
        dropped = {other for field in own for other in EXCLUDES.get(field, ())}
        kept = {f: value for f, value in sent(self.guidance).items() if f not in dropped}
        return GuidanceParams.parse({**kept, **own})

    def _check_bound(self, name: str, field: str, value: Any) -> None:
        if self.bounds is None or field in FREE or self.bounds.get(field) == "any":
            return
        bound = self.bounds.get(field)
        if bound is None:
            settable = ", ".join(self.bounds) or "none"
            raise InvalidGuidance(
                f"preset '{name}' does not let a request set {field}; leave it out. Fields that a "
                f"request may set: {settable}.",
                param=field,
            )
        low, high = map(float, bound)
        values = value.values() if isinstance(value, dict) else [value]
        if not all(isinstance(v, int | float) and low <= v <= high for v in values):
            raise InvalidGuidance(
                f"{field} must be from {low:g} to {high:g} with preset '{name}'.", param=field
            )
