"""Settings of a training run: a YAML file, and overrides from the command line."""

import difflib
import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from trimtab_models.data.sources import rows
from trimtab_models.objectives import OBJECTIVES
from trimtab_models.training.grounded.settings import NAMES as GROUNDED
from trimtab_models.training.grounded.settings import GroundedConfig, Stopping
from trimtab_models.training.probes import can_train

log = logging.getLogger(__name__)
DPO = "dpo"
NAMES = (*OBJECTIVES, DPO, *GROUNDED)
"""Everything that can be trained; `TrainConfig` is for all but the last two."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Lora(_Strict):
    """Low-rank adapters by PEFT; a new head is trained in full."""

    r: int = Field(16, gt=0, description="rank")
    alpha: int = Field(32, gt=0, description="the adapter's product is scaled by alpha / r")
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: list[str] | str = Field("all-linear", description="names of the adapted layers")
    merge: bool = Field(True, description="write a whole network rather than an adapter")


class ProbeSizes(_Strict):
    """A probe on the base's own states, instead of a network; see `trimtab_models.probe`."""

    rank: int = Field(16, gt=0, description="r, rank of the part that depends on the token")
    width: int = Field(64, gt=0, description="units of the hidden layer")
    dropout: float = Field(0.3, ge=0, lt=1)


class TextRows(_Strict):
    """How a scorer with its own tokenizer, or an encoder, is trained; see training/texts."""

    rows: float = Field(2, ge=1, description="drawn prefixes of each answer or pair, on average")
    reads: Literal["text", "answer", "pair"] | None = Field(
        None, description="the form of its text; text, or that of an earlier scorer"
    )


PROBE = {"epochs": 8, "learning_rate": 2e-3}
"""Defaults of a TrainConfig with a probe, where they differ; see docs/training.md."""


class TrainConfig(_Strict):
    """A training run. Paths are relative to the working directory of the command."""

    objective: str = Field("distribution", description="a name of `OBJECTIVES`, or dpo")
    options: dict[str, Any] = Field({}, description="options of the objective")
    base: str = Field(description="the language model whose prefixes are scored; or demo, smollm2")
    scorer: str | None = Field(None, description="the initial network or probe; the base if absent")
    layers: int | None = Field(None, gt=0, description="number of its lowest layers to keep")
    data: str = Field(description="file, directory or name of the training data")
    validation: float | str | None = Field(
        None, description="the same for validation, or the share of the prompts to hold out"
    )
    aspect: str | None = Field(
        None, description="of rewards of spans, those of this aspect alone are the return"
    )
    completions: str | None = Field(
        None,
        description="half-completed answers with their returns, for the report and learning_rate",
    )
    out: Path = Field(description="directory of the new checkpoint")
    epochs: float = Field(1, gt=0)
    batch_size: int = Field(32, gt=0, description="items in a step, on each device")
    learning_rate: float | list[float] = Field(
        1e-4, description="from a list the best is chosen, by value MSE, margin, accuracy or loss"
    )
    seed: int = 0
    max_length: int | None = Field(
        None, gt=1, description="maximum tokens of prompt and completion"
    )
    lora: Lora | None = None
    bf16: bool = False
    gradient_checkpointing: bool = False
    probe: ProbeSizes | None = None
    texts: TextRows | None = None
    ensemble: int | None = Field(
        None, ge=2, le=64, description="heads on the network; each learns a resample of the prompts"
    )
    early_stopping: int | None = Field(
        None, gt=0, description="evaluations without a lower loss before a stop; keeps the best"
    )
    logging_steps: int = Field(10, gt=0)
    save_steps: int = Field(200, gt=0, description="a multiple of logging_steps")
    eval_steps: int | None = Field(None, gt=0, description="save_steps, if absent")
    tensorboard: bool = False
    trainer: dict[str, Any] = Field({}, description="further fields of TrainingArguments")

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, fields: Any) -> Any:
        if isinstance(fields, Mapping) and fields.get("probe") is not None:
            return {**PROBE, **fields}
        return fields

    @field_validator("objective")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in NAMES:
            raise ValueError(f"there is no objective {name!r}{nearest(name, NAMES)}")
        return name

    @field_validator("layers")
    @classmethod
    def _whole(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("objective") == DPO:
            raise ValueError(
                "dpo needs the whole initial network as its reference; leave this out, or set "
                "`scorer` to a smaller network"
            )
        return value

    @field_validator("probe")
    @classmethod
    def _alone(cls, value: ProbeSizes | None, info: ValidationInfo) -> ProbeSizes | None:
        if value is None:
            return None
        name = info.data.get("objective")
        if name == DPO or (name in OBJECTIVES and not can_train(OBJECTIVES[name]())):
            raise ValueError(
                f"{name} trains a whole language model, and no probe; choose another objective, "
                "such as distribution"
            )
        for other in ("layers", "lora", "gradient_checkpointing"):
            if info.data.get(other):
                raise ValueError(f"a probe has no network of its own; leave out {other}")
        return value

    @field_validator("texts")
    @classmethod
    def _with_scorer(cls, value: TextRows | None, info: ValidationInfo) -> TextRows | None:
        if value is not None and info.data.get("scorer") is None:
            raise ValueError(
                "it is for scorers that do not read the base's tokens; set `scorer` to one"
            )
        return value

    @field_validator("ensemble")
    @classmethod
    def _of_values(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is None:
            return None
        name, lora = info.data.get("objective"), info.data.get("lora")
        if name not in OBJECTIVES or OBJECTIVES[name]().head != "scalar":
            raise ValueError(
                f"{name} has no head of one value; choose another objective, such as td-lambda"
            )
        if info.data.get("probe"):
            raise ValueError("a probe has one head; leave out probe")
        if lora is not None and not lora.merge:
            raise ValueError("an adapter stores one head; set lora.merge to true")
        return value

    @field_validator("validation")
    @classmethod
    def _share(cls, value: float | str | None) -> float | str | None:
        if isinstance(value, float) and not 0 < value < 1:
            raise ValueError(f"expected a share of the prompts between 0 and 1, not {value}")
        return value

    @field_validator("learning_rate")
    @classmethod
    def _rates(cls, value: float | list[float]) -> float | list[float]:
        if not (rates := value if isinstance(value, list) else [value]) or min(rates) <= 0:
            raise ValueError("expected a positive number, or a list of them")
        return value

    @field_validator("completions", "eval_steps")
    @classmethod
    def _read(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None and info.data.get("validation", "invalid") is None:
            raise ValueError("is read with `validation` only; set that too, or leave this out")
        return value


Config = TypeVar("Config", TrainConfig, GroundedConfig)


def nearest(name: str, names: Iterable[str]) -> str:
    """The end of a message about an unknown name: a suggestion."""
    near = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; expected one of {', '.join(names)}"


class _Loader(yaml.SafeLoader):
    """YAML with the numbers of YAML 1.2, such as 1e-5."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{where}: not YAML ({' '.join(str(error).split())}).") from None


def _put(fields: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not (key and equals):
        raise ValueError(f"--set expects key=value, as in epochs=2 or lora.r=8, not {override!r}.")
    *path, last = key.split(".")
    for part in path:
        inner = fields.get(part)
        fields[part] = fields = dict(inner) if isinstance(inner, Mapping) else {}
    fields[last] = _parse(text, f"--set {key}")


def load(
    path: str | Path | None = None,
    overrides: Iterable[str] = (),
    objective: str | None = None,
) -> TrainConfig | GroundedConfig:
    """A configuration from a file, then "a.b=c" overrides (values are YAML), then the objective.

    Without an objective it is `gains` if the data has rewards of unfinished answers, and a probe is
    trained unless a setting is of another network.

    Raises:
        ValueError: names each invalid field and what was expected.
        OSError: the file cannot be read.
    """
    fields: Any = {}
    if path is not None:
        fields = _parse(Path(path).read_text(encoding="utf-8"), str(path)) or {}
        if not isinstance(fields, dict):
            raise ValueError(f"{path}: expected a mapping of settings.")
    for override in overrides:
        _put(fields, override)
    if objective is not None:
        fields["objective"] = objective
    fields = _by_data(fields)
    if fields.get("objective") in GROUNDED:
        return checked(GroundedConfig, fields)
    return checked(TrainConfig, fields)


def checked(model: type[Config], fields: Mapping[str, Any]) -> Config:
    """A configuration of these fields.

    Raises:
        ValueError: names each invalid field and what was expected.
    """
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise ValueError("; ".join(_message(one, model) for one in error.errors())) from None


def _by_data(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields with the objective that the data is for, if they name none; see `load`."""
    source = fields.get("data")
    if fields.get("objective") or not isinstance(source, str) or not Path(source).exists():
        return fields
    try:
        first = next(rows(source), None)
    except (OSError, ValueError):
        return fields  # it is refused where it is read, after the place of the result
    if first is None or not first.record.get("prefix_rewards"):
        return fields
    network = fields.keys() & {"scorer", "layers", "lora", "gradient_checkpointing"}
    network |= fields.keys() & {"texts", "ensemble"}
    chosen = {"objective": "gains"} if network else {"objective": "gains", "probe": {}}
    log.warning(
        "the data has rewards of unfinished answers: training gains%s.",
        "" if network else " with a probe",
    )
    return {**chosen, **{key: value for key, value in fields.items() if value is not None}}


def _message(error: Mapping[str, Any], model: type[BaseModel]) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        parts: dict[Any, type[BaseModel]] = {"lora": Lora, "probe": ProbeSizes, "texts": TextRows}
        parts |= dict.fromkeys(("stopping", "reward_stopping"), Stopping)
        known = parts.get(error["loc"][0], model)
        return f"{key}: no such setting{nearest(str(error['loc'][-1]), known.model_fields)}"
    if error["type"] == "missing":
        return f"{key}: is needed ({model.model_fields[key].description})"
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"{key}: {message[0].lower()}{message[1:]}"
