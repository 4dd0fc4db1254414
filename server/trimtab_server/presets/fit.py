"""POST /v1/presets/{name}/fit: a preset from comparisons of answers."""

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from trimtab.engine import GenerationRequest
from trimtab.errors import InvalidGuidance, InvalidRequest, UnknownScorer
from trimtab.params import MAX_BETA, MAX_BUDGET, MAX_SCORERS, GuidanceParams, Number
from trimtab.taste import LEVEL, Pair, Question, Taste, learn, pairs_of
from trimtab.taste.comparisons import Candidates, Comparisons, to_score
from trimtab_server.errors import invalid
from trimtab_server.presets.preset import Bound, Preset
from trimtab_server.state import State

Names = Annotated[list[str], Field(min_length=1, max_length=MAX_SCORERS)]


class FitRequest(BaseModel):
    """The body: comparisons, the scorers, the strength of the preset, and its further fields."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    comparisons: Comparisons = Field(description="answers that a user has compared")
    candidates: Candidates = Field(
        [], description="answers that may be compared next; default: those at hand"
    )
    scorers: Names | None = Field(
        None, description="names of the scorers that get weights; default: all"
    )
    beta: Number | None = Field(
        None, gt=0, le=MAX_BETA, description="strength of the preset; 1 is the fitted utility"
    )
    kl_budget: Number | None = Field(
        None, ge=0, le=MAX_BUDGET, description="instead of beta: KL budget of an answer in nats"
    )
    level: Number = Field(LEVEL, ge=0.5, le=0.99, description="probability of each interval")
    bounds: dict[str, Bound] | None = Field(None, description="bounds of the preset")
    key: str | None = Field(None, description="API key that the preset is bound to")
    save: bool = Field(True, description="false: only fit, and save no preset")
    replace: bool = Field(False, description="whether a preset of this name may be replaced")

    @model_validator(mode="after")
    def _one_strength(self) -> Self:
        if (self.beta is None) == (self.kl_budget is None):
            raise ValueError("send exactly one of beta and kl_budget")
        if self.scorers is not None and len(set(self.scorers)) < len(self.scorers):
            raise ValueError("a scorer is named twice; name each once")
        return self

    @classmethod
    def parse(cls, fields: Any) -> "FitRequest":
        """Check a body.

        Raises:
            InvalidRequest: naming at most three fields, never their values.
        """
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise invalid(error, list(cls.model_fields)) from None

    @property
    def strength(self) -> dict[str, float]:
        """The strength of the preset's guidance."""
        strengths = {"beta": self.beta, "kl_budget": self.kl_budget}
        return {name: value for name, value in strengths.items() if value is not None}

    def preset(self, guidance: Mapping[str, Any]) -> Preset:
        """The preset with this guidance; raises as Preset.parse."""
        rest = {"bounds": self.bounds, "key": self.key}
        own = {name: value for name, value in rest.items() if value is not None}
        return Preset.parse({"guidance": dict(guidance), **own})


async def fit_preset(state: State, name: str, request: FitRequest) -> tuple[Taste, bool]:
    """Score the answers, fit the weights, and make the preset; whether it is saved.

    Raises:
        InvalidRequest, InvalidGuidance: the body, or one of its prompts or answers, is invalid.
        Forbidden, PresetInUse, TrimtabError: see Presets.put.
        ScorerFault: a scorer failed.
    """
    if request.save:
        state.presets.check_place(name, new=not request.replace)
    request.preset(request.strength)  # before the answers are scored
    names = _scorers(state, request.scorers)
    deviations = {one["name"]: one["deviation"] for one in await state.statuses()}
    pairs = pairs_of(request.comparisons, request.candidates)
    scores = await _scores(state, names, pairs)
    fitted = await asyncio.to_thread(
        learn,
        request.comparisons,
        request.candidates,
        scores,
        {name: deviations[name] for name in names},
        request.strength,
        level=request.level,
    )
    if request.save:
        preset = request.preset(fitted.guidance)
        await state.presets.put(name, preset, state.scorers, state.default, new=not request.replace)
    return fitted, request.save


def _scorers(state: State, named: Sequence[str] | None) -> list[str]:
    """The names of the scorers to weigh, each of which can score given answers."""
    names = list(state.scorers if named is None else named)
    if len(names) > MAX_SCORERS or not names:
        raise InvalidRequest(
            f"expected 1 to {MAX_SCORERS} scorers, and this server has {len(names)}; send their "
            "names as scorers.",
            param="scorers",
        )
    try:
        GuidanceParams(scorers=dict.fromkeys(names, 1.0)).resolve(state.scorers, None)
    except (UnknownScorer, ValidationError):  # a 404 would mean the preset
        raise InvalidGuidance(
            "no scorer of that name is served here. GET /v1/scorers lists them.", param="scorers"
        ) from None
    for name in names:
        version = state.scorers[name]
        parts = [state.scorers[part] for part in version.parts if part in state.scorers]
        if any(one.reads == "states" for one in (version, *parts)):
            raise InvalidRequest(
                f"scorer '{name}' reads the base's states while it writes, so it cannot score "
                "answers that are sent; name others, or use `trimtab fit-taste`.",
                param="scorers",
            )
    return names


async def _scores(
    state: State, names: Sequence[str], pairs: Sequence[Pair]
) -> dict[tuple[Question, str], dict[str, float]]:
    """Each scorer's score of each answer of the pairs."""
    guidance = GuidanceParams(scorers=dict.fromkeys(names, 1.0), beta=0.0)
    scores: dict[tuple[Question, str], dict[str, float]] = {}
    for question, answers in to_score(pairs).items():
        request = GenerationRequest(
            id=f"fit-{uuid.uuid4().hex}",
            text=question.prompt,
            turns=question.messages(),
            guidance=guidance,
            versions=state.versions(guidance.scorers),
        )
        scored = await state.score(request, answers)
        scores |= {(question, a): s for a, s in zip(answers, scored, strict=True)}
    return scores
