"""The flat form of guidance parameters: `trimtab_*` keys of vLLM's extra_args.

Its values are strings and numbers only, like those of `vllm_xargs`, vLLM's own field over HTTP.
"""

import json
from collections.abc import Mapping
from typing import Any

from trimtab.errors import InvalidGuidance
from trimtab.params import MAX_SCORERS, GuidanceParams
from trimtab.principles import from_flat
from trimtab.utility import EXPECTED, Utility, read, spell

PREFIX = "trimtab_"
RECORD_KEY = "trimtab_record"
"""Key under which the worker keeps a request's record; set only by the front end."""
VERSIONS_KEY = "trimtab_versions"
"""Key of the scorer versions of a request, "a@2,b@1"; set only by the front end."""
PROMPT_KEY = "trimtab_prompt"
"""Key of the prompt's trimtab.scoring.text.PromptContext in JSON, for scorers that read text: its
length, if the engine continues a longer prefix, and the conversation that it was made from; set
only by the front end."""
BESIDE_KEY = "trimtab_beside"
"""Key of what goes into the prompts of a request's principles, [[place, tokens], …] in JSON; set
only by the front end, see trimtab.principles.insertion."""
GROUP_KEY = "trimtab_group"
"""Key of the request whose principles have rows beside it; set only by the scheduler."""
SHADOW_KEY = "trimtab_shadow"
"""Key of such a row: the place of its principle, from 0; set only by the scheduler."""
CARRIED = (RECORD_KEY, VERSIONS_KEY, PROMPT_KEY, BESIDE_KEY, GROUP_KEY, SHADOW_KEY)


def to_xargs(params: GuidanceParams) -> dict[str, str | int | float]:
    """The flat form."""
    flat: dict[str, str | int | float] = {}
    unset = {"beta"} if params.kl_budget is not None else set()
    for name, value in params.model_dump(exclude_none=True, exclude=unset).items():
        match value:
            case dict() if name == "utility":
                flat[PREFIX + name] = ",".join(f"{n}={spell(x)}" for n, x in value.items())
            case {} if not value:  # principles alone: no scorer
                continue
            case list():
                flat[PREFIX + name] = json.dumps(value)
            case dict():
                flat[PREFIX + name] = ",".join(f"{n}={x!r}" for n, x in value.items())
            case bool():
                flat[PREFIX + name] = int(value)
            case _:
                flat[PREFIX + name] = value
    return flat


def from_xargs(extra_args: Mapping[str, Any] | None) -> GuidanceParams | None:
    """Parse the flat form; None if there is no `trimtab_*` key of guidance.

    Raises:
        InvalidGuidance: as GuidanceParams.parse.
    """
    flat = {
        key.removeprefix(PREFIX): value
        for key, value in (extra_args or {}).items()
        if key.startswith(PREFIX) and key not in CARRIED
    }
    if not flat:
        return None
    for name in ("normalize", "trace"):
        # vLLM's xargs have no booleans: its parser turns true into 1.
        if flat.get(name) in (0, 1):
            flat[name] = bool(flat[name])
    for name in ("scorers", "floors", "ceilings", "caution"):
        if isinstance(flat.get(name), str):
            flat[name] = _parse_numbers(name, flat[name])
    if isinstance(flat.get("utility"), str):
        flat["utility"] = _parse_utility(flat["utility"])
    if isinstance(flat.get("principles"), str):
        flat["principles"] = from_flat(flat["principles"])
    return GuidanceParams.parse(flat)


def _parse_numbers(field: str, text: str) -> dict[str, float]:
    """`"a=1,b=-0.5"` → {"a": 1.0, "b": -0.5}; a bare name has weight 1, of `scorers`."""
    numbers: dict[str, float] = {}
    for name, equals, number in _split(field, text):
        try:
            numbers[name] = float(number) if equals or field != "scorers" else 1.0
        except ValueError:
            raise InvalidGuidance(
                f"{field} must have the form NAME=NUMBER,NAME=NUMBER.", param=field
            ) from None
    return numbers


def _parse_utility(text: str) -> dict[str, Utility]:
    """`"a=target:40,b=mean"` → {"a": {"target": 40.0}, "b": "mean"}."""
    try:
        return {name: read(utility) for name, _, utility in _split("utility", text)}
    except ValueError:
        raise InvalidGuidance(
            f"utility must have the form NAME=target:40,NAME=mean; {EXPECTED}.", param="utility"
        ) from None


def _split(field: str, text: str) -> list[tuple[str, str, str]]:
    """The parts of a flat field, each (name, "=", value)."""
    parts = [part.strip().partition("=") for part in text.split(",")[: MAX_SCORERS + 1]]
    if len({name for name, _, _ in parts}) < len(parts):
        raise InvalidGuidance("a scorer is named twice; name each once.", param=field)
    return parts
