"""GuidanceParams: the guidance fields of a request, and their three forms.

    nested   the `guidance` object of the OpenAI routes      GuidanceParams.parse
    plain    top-level fields of POST /generate              GuidanceParams.parse
    flat     `trimtab_*` keys of vLLM's extra_args/xargs     trimtab.xargs

One strict class parses all three, so a value has the same meaning in each.
"""

import math
import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Annotated, Any, Literal, Protocol, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from trimtab import principles, reasons
from trimtab.errors import InvalidGuidance, UnknownScorer
from trimtab.principles import MAX_PRINCIPLES, Principle, Text
from trimtab.utility import Utility, checked, kind_of

K, MASS = 16, 0.98
"""Default candidates, as measured in docs/guidance.md."""
MAX_BETA = 100.0
MAX_BUDGET = 1000.0
MAX_CAUTION = 100.0
MAX_FLOOR = 1e6
MAX_K = 2000
"""The most candidates that VAS tried (appendix B.2)."""
MAX_SCORERS = 8
MAX_NAMED = 16
"""Maximum number of scorers that an error lists."""
MAX_WEIGHT = 1000.0
PAPERS: dict[str, dict[str, Any]] = {
    "args": {"k": 10, "mass": 1.0, "tail": "truncate"},
    "pargs": {"k": 10, "mass": 1.0, "tail": "truncate"},
    "vas": {"k": 20, "mass": 1.0, "tail": "mean"},
}
"""The candidates and the tail of papers: ARGS (arXiv 2402.01694), PARGS (2406.07780), VAS."""
READS_RETURNS = {
    "floors": "floors",
    "ceilings": "ceilings",
    "utility": 'utilities other than "mean"',
}
"""Fields that need return distributions, and how an error calls them."""
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}", re.ASCII)
"""Pattern of a scorer's name (full match)."""


def _number(value: Any) -> Any:
    # JSON has one kind of number: 4 is a valid β. True is not, although Python accepts it as 1.
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value) if abs(value) < 2**53 else math.inf
    return value


Number = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]


class Served(Protocol):
    """The properties of a scorer that the check of a request needs."""

    @property
    def family(self) -> str | None:
        """The scorer's family, see trimtab.scorers."""

    @property
    def distributional(self) -> bool:
        """Whether it has histograms of returns."""

    @property
    def whole(self) -> bool:
        """Whether it scores the whole vocabulary at once."""

    @property
    def ensemble(self) -> bool:
        """Whether it has several heads, whose spread `caution` takes off."""


class GuidanceParams(BaseModel):
    """How one request is steered: π(v) ∝ π0(v)·exp(β·Σ_i w_i·s_i(prefix + v)) on the candidates."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    scorers: dict[str, Number] | None = Field(
        None, description="scorer name → weight w_i, signed; default: every scorer with weight 1"
    )
    beta: Number = Field(
        1.0, ge=-MAX_BETA, le=MAX_BETA, description="overall strength β; 0 is the base model"
    )
    kl_budget: Number | None = Field(
        None,
        ge=0,
        le=MAX_BUDGET,
        description="instead of beta: KL budget of an answer in nats; β is set at each step",
    )
    floors: dict[str, Number] | None = Field(
        None,
        description="scorer name → minimum mean reward; the smallest strength that reaches it "
        "replaces β·w_i",
    )
    ceilings: dict[str, Number] | None = Field(
        None,
        description="scorer name → maximum mean reward; a negative strength that keeps it is added "
        "to β·w_i",
    )
    utility: dict[str, Utility] | None = Field(
        None,
        description='scorer name → what to make of its reward R: "mean", the default; '
        '{"target": x}, close to x; {"at_least": x} or {"at_most": x}, the probability of it; '
        '{"cvar": a}, the mean of the worst share a',
    )
    principles: Annotated[list[Principle], Field(max_length=MAX_PRINCIPLES)] | None = Field(
        None,
        description="texts put before the prompt, with signed weights: each steers by what it "
        "changes in the base's own probabilities",
    )
    negative_prompt: Text | None = Field(
        None, description="a principle of weight -1: classifier-free guidance with γ = 1 + β"
    )
    caution: dict[str, Number] | None = Field(
        None,
        description="scorer → λ ≥ 0 of an ensemble, whose score is the mean of its heads less λ "
        "times their spread; default 0",
    )
    paper: Literal["args", "pargs", "vas"] | None = Field(
        None, description="k, mass and tail of a paper; fields that are sent override it"
    )
    k: Annotated[int, Field(ge=1, le=MAX_K)] | Literal["all"] = Field(
        K,
        description='maximum candidates per step; "all" scores the whole vocabulary, with scorers '
        "that do it at once: then there is no tail, and mass is not read",
    )
    mass: Number = Field(
        MASS,
        gt=0,
        le=1,
        description="candidates are the smallest set of most likely tokens whose base probability "
        "reaches this; 1 always gives k",
    )
    tail: Literal["truncate", "mean"] = Field(
        "mean",
        description="other tokens: add β times the candidates' mean score (VAS), or cut them "
        "(PARGS)",
    )
    normalize: bool = Field(
        False, description="use (s − mean)/deviation, as stored with each scorer"
    )
    on_error: Literal["fail", "unguided"] = Field(
        "fail", description="if a scorer fails: end with an error, or continue unguided"
    )
    trace: bool = Field(False, description="keep a record of every step")

    @model_validator(mode="before")
    @classmethod
    def _fill_paper(cls, fields: Any) -> Any:
        paper = fields.get("paper") if isinstance(fields, Mapping) else None
        return {**PAPERS.get(paper, {}), **fields} if isinstance(paper, str) else fields

    @field_validator("utility", mode="before")
    @classmethod
    def _check_utility(cls, named: Any) -> Any:
        if isinstance(named, Mapping):
            return {name: checked(one) for name, one in named.items()}
        return named

    @field_validator("scorers", "floors", "ceilings", "utility", "caution")
    @classmethod
    def _check_names(cls, named: dict[str, Any] | None) -> dict[str, Any] | None:
        if named is None:
            return None
        if not 1 <= len(named) <= MAX_SCORERS:
            raise ValueError(f"expected 1 to {MAX_SCORERS} scorers, got {len(named)}")
        if not all(map(NAME.fullmatch, named)):
            raise ValueError(
                "a scorer's name has 1 to 64 characters of a-z, 0-9, '_' and '-', "
                "the first a letter or digit"
            )
        return named

    @field_validator("scorers")
    @classmethod
    def _check_weights(cls, scorers: dict[str, float] | None) -> dict[str, float] | None:
        if any(abs(weight) > MAX_WEIGHT for weight in (scorers or {}).values()):
            raise ValueError(f"a weight must be at most {MAX_WEIGHT:g} in size")
        return scorers

    @field_validator("floors", "ceilings")
    @classmethod
    def _check_bounds(cls, bounds: dict[str, float] | None) -> dict[str, float] | None:
        if any(abs(bound) > MAX_FLOOR for bound in (bounds or {}).values()):
            raise ValueError(f"a floor or ceiling must be at most {MAX_FLOOR:g} in size")
        return bounds

    @model_validator(mode="after")
    def _few_principles(self) -> Self:
        if len(self.principles or ()) + (self.negative_prompt is not None) > MAX_PRINCIPLES:
            raise ValueError(
                f"expected at most {MAX_PRINCIPLES} principles, the negative_prompt included"
            )
        return self

    @field_validator("caution")
    @classmethod
    def _check_caution(cls, caution: dict[str, float] | None) -> dict[str, float] | None:
        if any(not 0 <= size <= MAX_CAUTION for size in (caution or {}).values()):
            raise ValueError(f"a caution must be from 0 to {MAX_CAUTION:g}")
        return caution

    @model_validator(mode="after")
    def _one_strength(self) -> Self:
        if self.kl_budget is not None and "beta" in self.model_fields_set:
            raise ValueError("kl_budget sets beta at every step; send one of the two")
        if self.k == "all" and self.planned:
            raise ValueError(
                "kl_budget, floors, ceilings and utility need candidates; send a number as k"
            )
        return self

    @model_validator(mode="after")
    def _bounds_agree(self) -> Self:
        for name, floor in (self.floors or {}).items():
            if floor > (self.ceilings or {}).get(name, math.inf):
                raise ValueError("a scorer's floor must be at most its ceiling")
            if self.utility_of(name) != "mean":
                raise ValueError(
                    "a scorer with a floor has no weight, so its utility would not be used; send "
                    "one of the two"
                )
        return self

    @property
    def steers(self) -> bool:
        """Whether the request differs from the base model."""
        return self.beta != 0 or self.kl_budget is not None or bool(self.bounded)

    @cached_property
    def bounded(self) -> set[str]:
        """The scorers with a floor or a ceiling."""
        return {*(self.floors or {}), *(self.ceilings or {})}

    def utility_of(self, name: str) -> Utility:
        """A scorer's utility."""
        return (self.utility or {}).get(name, "mean")

    @cached_property
    def planned(self) -> bool:
        """Whether the host sets strengths or utilities at every step, from what scorers return."""
        other = any(one != "mean" for one in (self.utility or {}).values())
        return self.kl_budget is not None or bool(self.bounded) or other

    @cached_property
    def continues(self) -> bool:
        """Whether a step's plan needs the plan of the step before it."""
        kinds = {kind_of(one)[0] for one in (self.utility or {}).values()}
        return self.kl_budget is not None or bool(self.bounded) or "cvar" in kinds

    @cached_property
    def said(self) -> dict[str, Principle]:
        """The principles with a weight, by name; the negative prompt is the last."""
        negative = [] if self.negative_prompt is None else [self.negative_prompt]
        return principles.named(
            [*(self.principles or ()), *(Principle(text=t, weight=-1.0) for t in negative)]
        )

    @classmethod
    def parse(cls, fields: Any) -> "GuidanceParams":
        """Parse the nested or plain form.

        Raises:
            InvalidGuidance: names at most three fields, never their values.
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
        self,
        available: Iterable[str] | Mapping[str, Served],
        default: Mapping[str, float] | None = None,
    ) -> "GuidanceParams":
        """A copy with scorers filled in: as requested, else `default`, else all with weight 1.

        Scorers with a floor or a ceiling are always included, with a ceiling alone at weight 0; if
        `scorers` is not sent, beside bounds or principles, no others are.
        available: names, or scorers by name, whose families are then checked too.

        Raises:
            UnknownScorer: a name is not available.
            InvalidGuidance: a floor, a ceiling or a utility needs the return distribution of a
                scorer that has none; a utility's scorer has no weight; k is "all" and a scorer does
                not score all tokens at once; or `caution` names a scorer that is not used, or is no
                ensemble.
        """
        names = list(available)
        chosen = self.scorers
        alone = bool(self.bounded or self.principles or self.negative_prompt)
        if chosen is None and not alone:
            chosen = dict(default) if default else dict.fromkeys(names, 1.0)
        chosen = {**dict.fromkeys(self.ceilings or {}, 0.0), **(chosen or {})}
        chosen |= dict.fromkeys(self.floors or {}, 1.0)
        for field in (*READS_RETURNS, "scorers"):
            of = chosen if field == "scorers" else getattr(self, field) or {}
            if not set(of) <= set(names):
                known = ", ".join(sorted(names)[:MAX_NAMED]) or "none"
                raise UnknownScorer(
                    f"no scorer of that name is served here; this server has: {known}. "
                    "GET /v1/scorers lists them.",
                    param=field,
                    code="scorer_not_found",
                )
        if not set(self.utility or {}) <= set(chosen):
            raise InvalidGuidance(
                "utility names a scorer that does not steer; name it in scorers too, with a "
                "weight.",
                param="utility",
            )
        for name in self.caution or {}:
            if name not in chosen:
                raise InvalidGuidance(
                    "caution names a scorer that this request does not use; name it in scorers "
                    "too, or leave it out.",
                    param="caution",
                )
            if isinstance(available, Mapping) and not available[name].ensemble:
                raise InvalidGuidance(
                    "caution needs an ensemble, whose heads have a spread; scorer "
                    f"'{name}' has one head. Leave it out, or train the scorer with `ensemble`. "
                    "GET /v1/scorers lists ensembles.",
                    param="caution",
                )
        if isinstance(available, Mapping):
            for name, weight in chosen.items():
                scorer = available[name]
                reading = [field for field in READS_RETURNS if self._reads_returns(field, name)]
                if reading and not scorer.distributional:
                    raise InvalidGuidance(
                        f"{READS_RETURNS[reading[0]]} need scorers with return distributions, of "
                        f"family 'distribution'; scorer '{name}' is of family '{scorer.family}'. "
                        "Name others, or send beta instead. GET /v1/scorers lists families.",
                        param=reading[0],
                    )
                if weight != 0 and self.k == "all" and not scorer.whole:
                    raise InvalidGuidance(
                        "k 'all' needs scorers that score the whole vocabulary at once, such as "
                        f"probes; scorer '{name}' is of family '{scorer.family}'. Name others, or "
                        "send a number as k. GET /v1/scorers lists them.",
                        param="k",
                    )
        return self.model_copy(update={"scorers": chosen})

    def _reads_returns(self, field: str, name: str) -> bool:
        """Whether a field needs the return distribution of a scorer."""
        if field == "utility":
            return self.utility_of(name) != "mean"
        return name in (getattr(self, field) or {})


FIELDS: tuple[str, ...] = tuple(GuidanceParams.model_fields)


def _invalid(error: ValidationError) -> InvalidGuidance:
    return InvalidGuidance(
        f"Invalid guidance: {reasons.fields(error, FIELDS)}.",
        param=reasons.first(error, FIELDS) or "guidance",
    )
