"""Settings of `trimtab serve`, from command line, TRIMTAB_* variables, YAML and defaults."""

import json
import os
import re
from collections.abc import Callable, Mapping
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_args, get_origin

import typer
import yaml
from pydantic import BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from trimtab import reasons
from trimtab.adapters.openai.config import UpstreamConfig
from trimtab.config import SCORER_SECONDS, GuidanceConfig, ScorerSpec, parse_scorer
from trimtab.errors import StartError
from trimtab.params import MAX_K
from trimtab_server.cap_settings import CapSettings
from trimtab_server.operations import OperationSettings
from trimtab_server.presets.settings import PresetSettings

CONFIG_VARIABLE = "TRIMTAB_CONFIG"


def _scorers(value: Any) -> Any:
    """NAME=PATH[,key=value...] in a list or separated by spaces; or a mapping, as in YAML."""
    if isinstance(value, str):
        value = value.split()
    if isinstance(value, Mapping):
        return {name: {"path": v} if isinstance(v, str) else v for name, v in value.items()}
    named = [parse_scorer(text) for text in value]
    if len(dict(named)) != len(named):
        raise ValueError("a scorer is named twice; name each once")
    return dict(named)


def weights(value: Any) -> Any:
    """NAME=WEIGHT in a list or separated by spaces; or a mapping, as in YAML."""
    if isinstance(value, str):
        value = value.split()
    if isinstance(value, Mapping):
        return value
    pairs = [text.partition("=") for text in value]
    return {name: float(weight) if equals else 1.0 for name, equals, weight in pairs}


def _key(value: Any) -> Any:
    """Validate one key. An empty key is an error: it must not open the server."""
    text = value.get_secret_value() if isinstance(value, SecretStr) else value
    if not text:
        raise ValueError("the key is empty; give a key, or remove the setting")
    if isinstance(text, str) and not (text.isascii() and text.isprintable() and " " not in text):
        raise ValueError("a key must be visible ASCII characters without spaces; choose another")
    return value


def _keys(value: Any) -> Any:
    """Keys in a list, or in a string separated by commas."""
    keys = value.split(",") if isinstance(value, str) else value
    if not keys:
        raise ValueError("the list of keys is empty; give a key, or remove the setting")
    return keys


def _origins(value: Any) -> Any:
    """Origins in a list or separated by spaces; or a JSON list, as vLLM takes it."""
    text = value if isinstance(value, str) else " ".join(map(str, value))
    return json.loads(text) if text.startswith("[") else text.split()


Key = Annotated[SecretStr, BeforeValidator(_key)]


def _words(value: Any) -> Any:
    return value.split() if isinstance(value, str) else value


class Settings(PresetSettings, CapSettings, OperationSettings):
    """The settings of `trimtab serve`; their descriptions are the rows of docs/settings.md."""

    model_config = SettingsConfigDict(env_prefix="TRIMTAB_", extra="forbid")

    model: str | None = Field(
        None,
        description="base model: a directory, a hub name, `demo` (embedded) or `smollm2` (fetched "
        "when first used); give this or `--upstream`",
    )
    scorer: Annotated[dict[str, ScorerSpec], NoDecode, BeforeValidator(_scorers)] = Field(
        default_factory=dict,
        description="scorers to serve, each `NAME=PATH[,key=value...]`; keys: `family`, "
        "`reference`, `alpha`, `reads`, `label`, `delimiter`, `aggregate`, `step_token`",
    )
    default_scorer: Annotated[dict[str, float], NoDecode, BeforeValidator(weights)] = Field(
        default_factory=dict,
        description="scorers for requests that name none, each `NAME=WEIGHT`; default: all "
        "scorers with weight 1",
    )
    api_key: Annotated[list[Key], NoDecode, BeforeValidator(_keys)] = Field(
        default_factory=list,
        validate_default=False,
        description="keys for the user routes (in the environment: separated by commas); without "
        "a key, these routes are open",
    )
    admin_key: Annotated[SecretStr | None, BeforeValidator(_key)] = Field(
        None,
        validate_default=False,
        description="key for every route; the only key for routes that change the server "
        "(scorers, vLLM's operator routes); without it, those routes are disabled",
    )
    scorer_dir: Path | None = Field(
        None,
        description="directory whose subdirectories are checkpoints that can be loaded while "
        "serving; without it, hot loading is disabled",
    )
    host: str = Field("127.0.0.1", description="address to listen on; `0.0.0.0` for all interfaces")
    allowed_origins: Annotated[list[str], NoDecode, BeforeValidator(_origins)] = Field(
        default_factory=list,
        description="origins whose pages may call this server from a browser (CORS); `*` for all; "
        "default: none",
    )
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 for any free port")
    max_body_bytes: int = Field(
        8 * 2**20,
        gt=0,
        description="maximum size of a request body, in bytes; lower where the context is short "
        "([limits.md](limits.md))",
    )
    max_in_flight: int | None = Field(
        None,
        ge=1,
        description="maximum answers in flight; further requests get a 429; default: twice vLLM's "
        "`--max-num-seqs`, or twice `--upstream-concurrency`",
    )
    drain_timeout: float = Field(
        30,
        ge=0,
        le=86400,
        description="seconds that requests in flight may take after SIGTERM or SIGINT; those that "
        "are still open then end with an error",
    )
    scorer_timeout: float = Field(
        SCORER_SECONDS,
        gt=0,
        le=3600,
        description="seconds that a scorer may take per step, with draft tokens for each position "
        "that the step scores; after three overruns within an hour it is suspended",
    )
    scorer_dtype: Literal["float32", "bfloat16"] | None = Field(
        None,
        description="precision of the scorers' networks: `float32` or `bfloat16`; default: "
        "`float32` on a CPU, the base's own on a GPU; see below",
    )
    cache_bytes: int | None = Field(
        None,
        gt=0,
        description="total memory for the scorers' prefix caches, in bytes; default: room for "
        "vLLM's `--max-num-seqs` requests of `--max-model-len` tokens, if memory allows; see below",
    )
    vllm: dict[str, Any] = Field(
        default_factory=dict,
        description="vLLM flags, name to value; on the command line, give them directly",
    )

    upstream: str | None = Field(
        None,
        description="URL of an OpenAI-compatible endpoint that serves as the base instead of "
        "MODEL, including `/v1`",
    )
    upstream_model: str | None = Field(None, description="name of the model at the upstream")
    upstream_key: Annotated[SecretStr | None, BeforeValidator(_key)] = Field(
        None, validate_default=False, description="API key for the upstream"
    )
    upstream_api: Literal["completions", "chat"] = Field(
        UpstreamConfig.api, description="upstream route to call: `completions` or `chat`"
    )
    upstream_continue: Literal["continue_final_message", "prefix", "none"] = Field(
        UpstreamConfig.continuation,
        description="how a `chat` upstream continues a partial answer: `continue_final_message` "
        "(vLLM), `prefix` (DeepSeek, Mistral), or `none` if it cannot",
    )
    upstream_top: int = Field(
        UpstreamConfig.top,
        ge=2,
        le=MAX_K,
        description="number of most likely tokens to request from the upstream per step",
    )
    upstream_block: int = Field(
        UpstreamConfig.block,
        ge=1,
        le=64,
        description="tokens to request per call at temperature 0; tokens that guidance would also "
        "choose are kept",
    )
    upstream_end: Annotated[list[str], NoDecode, BeforeValidator(_words)] = Field(
        default_factory=list,
        description="text of the upstream's end-of-turn token, if there is no tokenizer",
    )
    upstream_concurrency: int = Field(
        UpstreamConfig.concurrency, ge=1, description="maximum concurrent calls to the upstream"
    )
    upstream_retries: int = Field(
        UpstreamConfig.retries, ge=0, le=20, description="retries of a failed upstream call"
    )
    upstream_timeout: float = Field(
        UpstreamConfig.timeout, gt=0, description="seconds that an upstream call may take"
    )
    upstream_deadline: float = Field(
        UpstreamConfig.deadline,
        gt=0,
        description="seconds that a whole answer may take with an upstream",
    )
    upstream_length: int | None = Field(
        None,
        gt=1,
        description="maximum tokens of prompt and answer together with an upstream; default: the "
        "value in the tokenizer's directory",
    )
    tokenizer: str | None = Field(
        None,
        description="the upstream's tokenizer, a directory or a hub name; tokens are then "
        "requested by id (supported by vLLM), and scorers of every family can be used",
    )

    config: ClassVar[Path | None] = None

    def ready_to_load(self) -> Self:
        """The settings for a start: with hot loading, the default scorers are fixed here.

        Raises:
            StartError: `scorer_dir` is not a directory.
        """
        if self.admin_key is None or self.scorer_dir is None:
            return self
        if not self.scorer_dir.is_dir():
            raise StartError("scorer_dir is not a directory; create it, or remove the setting.")
        default = self.default_scorer or dict.fromkeys(self.scorer, 1.0)
        scorer_dir = self.scorer_dir.resolve()
        return self.model_copy(update={"default_scorer": default, "scorer_dir": scorer_dir})

    def keys(self) -> dict[str, Any]:
        """The keyword arguments of the key middleware (auth.ApiKeys)."""
        admin = self.admin_key
        return {
            "keys": [key.get_secret_value() for key in self.api_key],
            "admin_key": None if admin is None else admin.get_secret_value(),
        }

    @model_validator(mode="after")
    def _keys_apart(self) -> Self:
        if self.admin_key is not None and self.admin_key in self.api_key:
            raise ValueError("the admin_key is also an api_key; choose another")
        return self

    @model_validator(mode="after")
    def _one_base(self) -> Self:
        if (self.model is None) == (self.upstream is None):
            raise ValueError("give either a model to serve or --upstream")
        if self.upstream is None:
            return self
        if self.upstream_model is None:
            raise ValueError("--upstream needs --upstream-model")
        self.upstream_config()
        return self

    def upstream_config(self) -> UpstreamConfig:
        """The settings of the adapter; only with an upstream.

        Raises:
            ValueError: they contradict each other.
        """
        key = self.upstream_key
        return UpstreamConfig(
            url=str(self.upstream),
            model=str(self.upstream_model),
            key=None if key is None else key.get_secret_value(),
            api=self.upstream_api,
            continuation=self.upstream_continue,
            top=self.upstream_top,
            block=self.upstream_block,
            ends=tuple(self.upstream_end),
            concurrency=self.upstream_concurrency,
            retries=self.upstream_retries,
            timeout=self.upstream_timeout,
            deadline=self.upstream_deadline,
            length=self.upstream_length,
            tokenizer=self.tokenizer,
        )

    def guidance(self) -> dict[str, Any]:
        """The `trimtab` part of vLLM's additional configuration.

        Raises:
            ScorerLoadError: it is invalid (trimtab.config.GuidanceConfig).
        """
        section = {
            "scorers": {name: spec.model_dump() for name, spec in self.scorer.items()},
            "default_scorers": self.default_scorer or None,
            "scorer_timeout": self.scorer_timeout,
            "scorer_dtype": self.scorer_dtype,
            "cache_bytes": self.cache_bytes,
        }
        return GuidanceConfig.parse({"trimtab": section}).model_dump(exclude_none=True)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: Any,
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Command line, then environment, then the YAML file."""
        return (
            init_settings,
            env_settings,
            YamlConfigSettingsSource(settings_cls, yaml_file=cls.config),
        )


def load(options: Mapping[str, Any], config: Path | None = None) -> Settings:
    """Settings from the options of the command line, the environment and a YAML file.

    Raises:
        StartError: the file is missing, or a setting is invalid.
    """
    file = config or (Path(path) if (path := os.environ.get(CONFIG_VARIABLE)) else None)
    if file is not None and not file.is_file():
        raise StartError(f"there is no configuration file at {file}.")
    source = type("Settings", (Settings,), {"config": file, "__doc__": Settings.__doc__})
    try:
        settings: Settings = source(**{k: v for k, v in options.items() if v not in (None, [], ())})
    except ValidationError as error:
        raise StartError(f"invalid settings: {reasons.fields(error)}.") from None
    except yaml.YAMLError as error:
        raise StartError(f"{file} is not valid YAML: {error}") from None
    return settings


def options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a typer command an option for each setting, in the place of its `**` parameter.

    typer reads a command's signature, and passes on what is given on the command line.
    """
    *own, _ = signature(command).parameters.values()
    for name, field in _own_first():
        if name == "vllm":  # typer passes on what it does not know
            continue
        text = re.sub(
            r"\[([^]]+)\]\([^)]+\)", r"\1", str(field.description)
        )  # links, for docs alone
        kind: Any = field.annotation
        if get_origin(kind) in (list, dict):
            kind, text = list[str], f"{text}; repeatable"
        elif SecretStr in get_args(kind):
            kind = str
        info = (typer.Argument if name == "model" else typer.Option)(
            help=f"{text[0].upper()}{text[1:]}.",
            metavar=None if kind is bool else name.rpartition("_")[2].upper(),
            show_default=_default(field) or False,
        )
        annotation = Annotated[kind | None, info]
        own.append(Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=annotation))
    vars(command)["__signature__"] = Signature(own)
    return command


def table() -> str:
    """The settings as a Markdown table (docs/settings.md)."""
    lines = ["| command line, YAML | environment | meaning | default |", "|---|---|---|---|"]
    for name, field in _own_first():
        flag = {"model": "`MODEL`", "vllm": "any vLLM flag"}.get(
            name, f"`--{name.replace('_', '-')}`"
        )
        value = f"`{default}`" if (default := _default(field)) else ""
        lines.append(
            f"| {flag}, `{name}` | `TRIMTAB_{name.upper()}` | {field.description} | {value} |"
        )
    return "\n".join(lines) + "\n"


def _own_first() -> list[tuple[str, FieldInfo]]:
    """The settings, those of this module before those of their base classes."""
    return sorted(Settings.model_fields.items(), key=lambda i: i[0] not in Settings.__annotations__)


def _default(field: FieldInfo) -> str:
    """A setting's default as text; empty if it has none."""
    value = field.get_default(call_default_factory=True)
    return "" if value in ("", [], {}, None) else str(value)
