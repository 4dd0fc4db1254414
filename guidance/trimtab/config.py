"""Start-up configuration of a worker: the scorers to load and the memory they may use.

It is passed as `--additional-config '{"trimtab": {...}}'`, so a stock vLLM server accepts it.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from trimtab import reasons
from trimtab.errors import ScorerLoadError
from trimtab.params import NAME

CACHE_BYTES = 256 * 2**20
"""Bytes of all prefix pools together, where nobody has chosen them."""
SCORER_SECONDS = 10.0
FAMILY = re.compile(r"[a-z_]+|[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_]*")


class ScorerSpec(BaseModel):
    """Path, family and options of one scorer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(
        min_length=1,
        description="checkpoint directory or hub name; module:function for family=function; "
        "NAME:WEIGHT+NAME:WEIGHT for family=composite",
    )
    family: str | None = Field(
        None,
        max_length=300,
        description="head, distribution, vocabulary, probe, log_ratio, text, function, composite, "
        "or package.module:Class for your own family; default: as stored in the checkpoint",
    )
    reference: str | None = Field(
        None,
        description="log_ratio: the reference model, before its tuning; default: as stored in "
        "the checkpoint",
    )
    reads: Literal["tokens", "text", "answer", "pair", "chat"] | None = Field(
        None,
        description="the scorer's input. function: tokens (default), text (with template and "
        "special tokens), answer (alone), pair (last user message and answer) or chat (messages). "
        "Networks with their own tokenizer: text (prompt and answer as one text) or chat (prompt "
        "in their own chat template; default if there is one). family=text also: answer or pair",
    )
    label: str | None = Field(
        None, description="text: the label, of several, whose log-probability is the score"
    )
    delimiter: str | None = Field(
        None,
        min_length=1,
        max_length=100,
        description="text: the text that ends a step, for process reward models; the answer is "
        "scored at the end of each step. On the command line, \\n is a line's end",
    )
    aggregate: Literal["last", "min", "product"] | None = Field(
        None, description="text with a delimiter: how the scores of steps become one; default: last"
    )
    step_token: str | None = Field(
        None,
        min_length=1,
        max_length=100,
        description="text with a delimiter: what the classifier reads in its place",
    )
    alpha: float | None = Field(None, description="log_ratio: factor α; default: as stored")

    @field_validator("family")
    @classmethod
    def _check_family(cls, family: str | None) -> str | None:
        if family is not None and not FAMILY.fullmatch(family):
            raise PydanticCustomError(
                "family", "it must be the name of a family, or package.module:Class for your own"
            )
        return family

    @model_validator(mode="after")
    def _check_steps(self) -> "ScorerSpec":
        if self.delimiter is None and (self.aggregate or self.step_token):
            raise ValueError("aggregate and step_token need a delimiter, which ends the steps")
        if self.delimiter is not None and self.family != "text":
            raise ValueError("a delimiter needs family=text, a classifier of texts")
        return self


class GuidanceConfig(BaseModel):
    """The `trimtab` part of vLLM's additional configuration."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    scorers: dict[str, ScorerSpec] = Field(default_factory=dict)
    default_scorers: dict[str, float] | None = None
    scorer_timeout: float = Field(
        SCORER_SECONDS, gt=0, le=3600, description="maximum seconds of a scorer per step"
    )
    scorer_dtype: Literal["float32", "bfloat16"] | None = Field(
        None,
        description="precision of the scorers' networks; default: float32 on a CPU, the base's "
        "own on a GPU",
    )
    cache_bytes: int | None = Field(
        None, gt=0, description="bytes of all prefix pools together; default: CACHE_BYTES"
    )

    @field_validator("scorers")
    @classmethod
    def _check_names(cls, scorers: dict[str, ScorerSpec]) -> dict[str, ScorerSpec]:
        for name in scorers:
            if not NAME.fullmatch(name):
                raise ValueError(f"scorer name {name[:64]!r} must match {NAME.pattern}")
        return scorers

    @model_validator(mode="after")
    def _check_defaults(self) -> "GuidanceConfig":
        if unknown := set(self.default_scorers or ()) - set(self.scorers):
            raise ValueError(f"default scorers {sorted(unknown)} are not among the scorers")
        return self

    @classmethod
    def parse(cls, additional_config: Any) -> "GuidanceConfig":
        """Read the configuration from vLLM's `additional_config`.

        Raises:
            ScorerLoadError: it is invalid.
        """
        section = (
            additional_config.get("trimtab", {}) if isinstance(additional_config, Mapping) else {}
        )
        try:
            return cls.model_validate(section)
        except ValidationError as error:
            raise ScorerLoadError(
                f"the trimtab configuration is invalid: {reasons.fields(error)}."
            ) from None


def parse_scorer(text: str) -> tuple[str, dict[str, Any]]:
    """`NAME=PATH[,key=value...]` as on the command line → (name, fields of a ScorerSpec).

    Raises:
        ScorerLoadError: the text has another form, or a field is invalid.
    """
    name, equals, rest = text.partition("=")
    path, *options = rest.split(",")
    pairs = [option.partition("=") for option in options]
    if not (equals and NAME.fullmatch(name) and path and all(sep for _, sep, _ in pairs)):
        raise ScorerLoadError(
            f"--scorer {text[:200]!r} must have the form NAME=PATH[,key=value...], with a NAME of "
            "a-z, 0-9, '_' and '-'; for example --scorer kindness=./checkpoints/kindness."
        )
    fields: dict[str, Any] = {"path": path, **{key: value for key, _, value in pairs}}
    for key in fields.keys() & {"delimiter", "step_token"}:
        fields[key] = fields[key].replace("\\n", "\n")
    try:
        return name, ScorerSpec.model_validate(fields).model_dump(exclude_none=True)
    except ValidationError as error:
        raise ScorerLoadError(f"--scorer {name} is invalid: {reasons.fields(error)}.") from None
