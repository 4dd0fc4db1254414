"""The settings of presets, and their form on the command line."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_settings import BaseSettings, NoDecode

from trimtab.errors import TrimtabError
from trimtab_server.presets.preset import Preset, check_name

FORM = (
    "a preset must have the form NAME=SCORER:WEIGHT,...,FIELD=VALUE,... (such as "
    "warm=sentiment:1,beta=4) or NAME={...}, a JSON object"
)


def parse_preset(text: str) -> tuple[str, dict[str, Any]]:
    """`NAME=REST` as on the command line → (name, fields of a Preset).

    REST is a JSON object with the fields of a preset, or parts separated by commas: `SCORER:WEIGHT`
    or `SCORER` (weight 1), and `FIELD=VALUE` for the other fields of guidance.

    Raises:
        ValueError: the text has another form.
    """
    name, equals, rest = text.partition("=")
    if not equals or not rest:
        raise ValueError(FORM)
    return name, _fields(rest)


def _fields(text: str) -> dict[str, Any]:
    if text.lstrip().startswith("{"):
        try:
            fields: dict[str, Any] = json.loads(text)
        except ValueError:
            raise ValueError("a preset that begins with { must be a JSON object") from None
        return fields
    scorers: dict[str, float] = {}
    guidance: dict[str, Any] = {}
    for part in text.split(","):
        field, equals, value = part.partition("=")
        scorer, colon, weight = part.partition(":")
        if (field if equals else scorer) in (guidance if equals else scorers):
            raise ValueError("a preset names a field or a scorer twice")
        if equals:
            guidance[field.strip()] = _value(value)
        else:
            try:
                scorers[scorer.strip()] = float(weight) if colon else 1.0
            except ValueError:
                raise ValueError(FORM) from None
    return {"guidance": {**({"scorers": scorers} if scorers else {}), **guidance}}


def _value(text: str) -> Any:
    """A field's value: a number, true or false, or text."""
    if text in ("true", "false"):
        return text == "true"
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def _presets(value: Any) -> Any:
    """A list of texts; or a mapping, as in YAML, also as a JSON object."""
    if isinstance(value, str):
        value = json.loads(value) if value.lstrip().startswith("{") else value.split()
    if isinstance(value, Mapping):
        named = [(n, _fields(v) if isinstance(v, str) else v) for n, v in value.items()]
    else:
        named = [parse_preset(text) for text in value]
    if len(dict(named)) != len(named):
        raise ValueError("a preset is named twice; name each once")
    for name, fields in named:
        check_name(name)
        try:
            Preset.parse(fields)
        except TrimtabError as error:
            raise ValueError(f"preset '{name}': {error.message}") from None
    return dict(named)


class PresetSettings(BaseSettings):
    """The settings of presets (docs/presets.md)."""

    preset: Annotated[dict[str, Preset], NoDecode, BeforeValidator(_presets)] = Field(
        default_factory=dict,
        description="presets that are fixed at start, each `NAME=SCORER:WEIGHT,FIELD=VALUE,...` or "
        "`NAME={...}` ([presets.md](presets.md))",
    )
    presets: Path | None = Field(
        None,
        description="YAML file of presets, which `PUT` and `DELETE` of `/v1/presets/{name}` "
        "change; made by the first `PUT`; without it, those routes are disabled",
    )
    default_preset: str | None = Field(
        None,
        description="preset for requests that name none and have no guidance; default: the base "
        "model answers them",
    )
