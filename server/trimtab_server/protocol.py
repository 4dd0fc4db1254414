"""The body of POST /generate: vLLM's field names and meanings, plus the guidance fields."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from trimtab.engine import Sampling
from trimtab.errors import InvalidRequest
from trimtab.params import FIELDS, GuidanceParams, Number
from trimtab.search import SearchParams
from trimtab_server.cap_settings import NARROW, Caps
from trimtab_server.caps import MAX_LOGPROBS, MAX_STOP, MAX_STOP_IDS, check_choices
from trimtab_server.errors import invalid

MAX_TOKENS = 1_000_000
ACCEPTED = {
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop_token_ids",
    "stream",
}
"""The sampling fields that a search accepts."""
TokenId = Annotated[int, Field(ge=0, lt=2**31)]


class Turn(BaseModel):
    """One turn of a conversation, text only."""

    model_config = ConfigDict(strict=True, extra="forbid")

    role: Annotated[str, Field(min_length=1, max_length=64)]
    content: str


class GenerateRequest(BaseModel):
    """Prompt and sampling fields, without the guidance fields."""

    model_config = ConfigDict(strict=True, extra="forbid")

    prompt: Annotated[str, Field(min_length=1)] | None = None
    prompt_token_ids: Annotated[list[TokenId], Field(min_length=1, fail_fast=True)] | None = None
    messages: Annotated[list[Turn], Field(min_length=1, fail_fast=True)] | None = None

    answer_token_ids: Annotated[list[TokenId], Field(min_length=1, fail_fast=True)] | None = Field(
        None,
        description="tokens of the answer that are already there; only what follows is returned",
    )

    max_tokens: int = Field(128, ge=1, le=MAX_TOKENS)
    min_tokens: int = Field(0, ge=0, le=MAX_TOKENS)
    temperature: Number = Field(1.0, ge=0, le=100)
    top_p: Number = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=-1, lt=2**31)
    min_p: Number = Field(0.0, ge=0, le=1)
    seed: int | None = Field(None, ge=-1, lt=2**63, description="-1 or null: a new seed each time")
    n: int = Field(1, ge=1)
    stop: (
        Annotated[str, Field(min_length=1, max_length=1000)]
        | Annotated[
            list[Annotated[str, Field(min_length=1, max_length=1000)]],
            Field(max_length=MAX_STOP),
        ]
        | None
    ) = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=MAX_STOP_IDS)] | None = None
    ignore_eos: bool = False
    presence_penalty: Number = Field(0.0, ge=-2, le=2)
    frequency_penalty: Number = Field(0.0, ge=-2, le=2)
    repetition_penalty: Number = Field(1.0, gt=0, le=100)
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    stream: bool = False

    model: str | None = Field(
        None, description="MODEL@PRESET steers by a preset; others are ignored: there is one model"
    )

    @model_validator(mode="after")
    def _one_prompt(self) -> "GenerateRequest":
        if sum(p is not None for p in (self.prompt, self.prompt_token_ids, self.messages)) != 1:
            raise ValueError("give exactly one of prompt, prompt_token_ids and messages")
        if self.min_tokens > self.max_tokens:
            raise ValueError("min_tokens must be at most max_tokens")
        if self.seed == -1:
            self.seed = None
        return self

    def turns(self) -> list[dict[str, Any]] | None:
        """The conversation, if it is one."""
        return None if self.messages is None else [turn.model_dump() for turn in self.messages]

    def sampling(self) -> Sampling:
        """The sampling fields."""
        names = {field.name for field in fields(Sampling)}
        return Sampling(**self.model_dump(include=names))


def parse(
    fields: Mapping[str, Any], caps: Caps = NARROW
) -> tuple[GenerateRequest, GuidanceParams, SearchParams | None]:
    """Split a body into the request, its guidance and its search, and check them.

    In a request field, null means the default, as on the OpenAI routes.

    Raises:
        InvalidRequest: a request field is unknown, missing or out of range.
        InvalidGuidance: the same for a field of guidance or search.
    """
    guidance = GuidanceParams.parse({k: v for k, v in fields.items() if k in FIELDS})
    search = SearchParams.parse(fields["search"]) if "search" in fields else None
    rest = {k: v for k, v in fields.items() if k not in (*FIELDS, "search") and v is not None}
    try:
        request = GenerateRequest.model_validate(rest)
    except ValidationError as error:
        raise invalid(error, [*GenerateRequest.model_fields, *FIELDS, "search"]) from None
    check_choices(request.n, caps)
    if search is not None:
        search.check(guidance, request.temperature)
        for name, field in GenerateRequest.model_fields.items():
            accepted = {"prompt", "prompt_token_ids", "messages", "model", *ACCEPTED}
            if name not in accepted and getattr(request, name) != field.default:
                raise InvalidRequest(
                    f"{name} does not go with search, which takes {', '.join(sorted(ACCEPTED))}.",
                    param=name,
                )
    return request, guidance, search
