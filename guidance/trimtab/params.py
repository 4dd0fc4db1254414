"""GuidanceParams: what a request asks of guidance, and its three carriers.

    nested   the `guidance` object of the OpenAI routes      GuidanceParams.parse
    plain    top-level fields of POST /generate              GuidanceParams.parse
    flat     `trimtab_*` keys of vLLM's extra_args/xargs     GuidanceParams.from_xargs, to_xargs

One strict class parses all three, so a value means the same wherever it comes from.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
)

from trimtab.errors import InvalidGuidance, UnknownScorer

MAX_BETA = 100.0
MAX_K = 256
MAX_SCORERS = 8
MAX_WEIGHT = 1000.0
PREFIX = "trimtab_"
RECORD_KEY = "trimtab_record"
"""Carrier key under which the worker keeps a request's record; set by the front end alone."""

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}", re.ASCII)
"""What a scorer may be called (matched in full)."""


def _number(value: Any) -> Any:
    # JSON has one kind of number: 4 is a fine β. True is not, though Python would take it as 1.
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value) if abs(value) < 2**53 else math.inf
    return value


Number = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]


class GuidanceParams(BaseModel):
    """How one request is steered: π(v) ∝ π0(v)·exp(β·Σ_i w_i·s_i(prefix + v)) on the candidates."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    scorers: dict[str, Number] | None = Field(
        None, description="scorer name → weight w_i, signed; every scorer with weight 1 if absent"
    )
    beta: Number = Field(
        1.0, ge=-MAX_BETA, le=MAX_BETA, description="overall strength β; 0 is the base model"
    )
    k: int = Field(32, ge=1, le=MAX_K, description="most candidates per step")
    mass: Number = Field(
        0.99,
        gt=0,
        le=1,
        description="candidates are the fewest most likely tokens whose base probability "
        "reaches this; 1 is always k",
    )
    tail: Literal["truncate", "mean"] = Field(
        "truncate",
        description="what other tokens get: nothing (PARGS), or β times the mean score (VAS)",
    )
    normalize: bool = Field(
        False, description="use (s − mean)/deviation, as stored with each scorer"
    )
    on_error: Literal["fail", "unguided"] = Field(
        "fail", description="if a scorer fails: end with an error, or go on as the base model"
    )
    trace: bool = Field(False, description="keep a record of every step")

    @field_validator("scorers")
    @classmethod
    def _check_scorers(cls, scorers: dict[str, float] | None) -> dict[str, float] | None:
        if scorers is None:
            return None
        if not 1 <= len(scorers) <= MAX_SCORERS:
            raise ValueError(f"expected 1 to {MAX_SCORERS} scorers, got {len(scorers)}")
        for name, weight in scorers.items():
            if not NAME.fullmatch(name):
                raise ValueError(
                    "a scorer's name has 1 to 64 characters of a-z, 0-9, '_' and '-', "
                    "the first a letter or digit"
                )
            if abs(weight) > MAX_WEIGHT:
                raise ValueError(f"a weight must be at most {MAX_WEIGHT:g} in size")
        return scorers

    @classmethod
    def parse(cls, fields: Any) -> "GuidanceParams":
        """Parse the nested or plain form.

        Raises:
            InvalidGuidance: naming at most three fields, never their values.
        """
        if not isinstance(fields, Mapping):
            raise InvalidGuidance(
                'guidance must be an object such as {"scorers": {"NAME": 1.0}, "beta": 2.0}; '
                f"got {type(fields).__name__}.",
                param="guidance",
            )
        try:
            return cls.model_validate(dict(fields))
        except ValidationError as error:
            raise _invalid(error) from None
        except UnicodeError:
            raise InvalidGuidance("guidance holds text that is not valid Unicode.") from None

    def resolve(
        self, available: Iterable[str], default: Mapping[str, float] | None = None
    ) -> "GuidanceParams":
        """The same, with scorers filled in: as asked, else `default`, else all with weight 1.

        Raises:
            UnknownScorer: a name is not among those available.
        """
        names = list(available)
        if self.scorers is None:
            chosen = dict(default) if default else dict.fromkeys(names, 1.0)
            return self.model_copy(update={"scorers": chosen})
        if not set(self.scorers) <= set(names):
            known = ", ".join(sorted(names)[:MAX_SCORERS]) or "none"
            raise UnknownScorer(
                f"no scorer of that name is served here; this server has: {known}. "
                "GET /v1/scorers lists them.",
                param="scorers",
                code="scorer_not_found",
            )
        return self

    def to_xargs(self) -> dict[str, str | int | float]:
        """The flat form, only strings and numbers, for vLLM's `vllm_xargs`."""
        flat: dict[str, str | int | float] = {}
        for name, value in self.model_dump(exclude={"scorers"}).items():
            flat[PREFIX + name] = int(value) if isinstance(value, bool) else value
        if self.scorers is not None:
            flat[PREFIX + "scorers"] = ",".join(f"{n}={w!r}" for n, w in self.scorers.items())
        return flat

    @classmethod
    def from_xargs(cls, extra_args: Mapping[str, Any] | None) -> "GuidanceParams | None":
        """Parse the flat form; None if no `trimtab_*` key asks for guidance.

        Raises:
            InvalidGuidance: as `parse`.
        """
        flat = {
            key.removeprefix(PREFIX): value
            for key, value in (extra_args or {}).items()
            if key.startswith(PREFIX) and key != RECORD_KEY
        }
        if not flat:
            return None
        for name in ("normalize", "trace"):
            # vLLM's xargs have no booleans: its parser makes 1 of true.
            if flat.get(name) in (0, 1):
                flat[name] = bool(flat[name])
        if isinstance(flat.get("scorers"), str):
            flat["scorers"] = _parse_weights(flat["scorers"])
        return cls.parse(flat)


FIELDS: tuple[str, ...] = tuple(GuidanceParams.model_fields)


def _parse_weights(text: str) -> dict[str, float]:
    """`"a=1,b=-0.5"` → {"a": 1.0, "b": -0.5}; a bare name has weight 1."""
    weights: dict[str, float] = {}
    for part in text.split(",")[: MAX_SCORERS + 1]:
        name, equals, weight = part.strip().partition("=")
        if name in weights:
            raise InvalidGuidance("a scorer is named twice; name each once.", param="scorers")
        try:
            weights[name] = float(weight) if equals else 1.0
        except ValueError:
            raise InvalidGuidance(
                "scorers must read NAME=WEIGHT,NAME=WEIGHT with numbers for weights.",
                param="scorers",
            ) from None
    return weights


def _invalid(error: ValidationError) -> InvalidGuidance:
    details = error.errors(include_url=False, include_context=False, include_input=False)
    shown = []
    for detail in details[:3]:
        name = str(detail["loc"][0]) if detail["loc"] else "guidance"
        if detail["type"] == "extra_forbidden":
            shown.append(f"there is an unknown field; the fields are {', '.join(FIELDS)}")
        else:
            shown.append(f"{name}: {detail['msg']}")
    first = details[0]["loc"]
    field = str(first[0]) if first and str(first[0]) in FIELDS else "guidance"
    more = f" (and {len(details) - 3} more)" if len(details) > 3 else ""
    return InvalidGuidance(
        "Invalid guidance: " + "; ".join(dict.fromkeys(shown)) + more + ".", param=field
    )
