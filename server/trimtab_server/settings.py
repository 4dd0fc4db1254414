"""Settings of `trimtab serve`: command line over TRIMTAB_* over YAML over default."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import yaml
from pydantic import BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from trimtab.config import (
    CACHE_BYTES,
    SCORER_SECONDS,
    GuidanceConfig,
    ScorerSpec,
    parse_scorer,
)
from trimtab_server.errors import StartError

CONFIG_VARIABLE = "TRIMTAB_CONFIG"


def _scorers(value: Any) -> Any:
    """NAME=PATH[,key=value...], several in a list or apart by spaces; or a mapping, as in YAML."""
    if isinstance(value, str):
        value = value.split()
    if isinstance(value, Mapping):
        return {name: {"path": v} if isinstance(v, str) else v for name, v in value.items()}
    named = [parse_scorer(text) for text in value]
    if len(dict(named)) != len(named):
        raise ValueError("a scorer is named twice; name each once")
    return dict(named)


def weights(value: Any) -> Any:
    """NAME=WEIGHT, several in a list or apart by spaces; or a mapping, as in YAML."""
    if isinstance(value, str):
        value = value.split()
    if isinstance(value, Mapping):
        return value
    pairs = [text.partition("=") for text in value]
    return {name: float(weight) if equals else 1.0 for name, equals, weight in pairs}


def _key(value: Any) -> Any:
    """One key; one that is empty is a mistake, not a wish for an open server."""
    text = value.get_secret_value() if isinstance(value, SecretStr) else value
    if not text:
        raise ValueError("the key is empty; give one, or leave the setting out")
    if isinstance(text, str) and not (text.isascii() and text.isprintable() and " " not in text):
        raise ValueError("a key is of visible ASCII characters, without spaces; choose another")
    return value


def _keys(value: Any) -> Any:
    """Keys in a list, or in a text apart by commas."""
    keys = value.split(",") if isinstance(value, str) else value
    if not keys:
        raise ValueError("there is no key in it; give one, or leave the setting out")
    return keys


def _origins(value: Any) -> Any:
    """Origins in a list or apart by spaces; JSON as well, as vLLM takes it."""
    text = value if isinstance(value, str) else " ".join(map(str, value))
    return json.loads(text) if text.startswith("[") else text.split()


Key = Annotated[SecretStr, BeforeValidator(_key)]


def _words(value: Any) -> Any:
    return value.split() if isinstance(value, str) else value


class Settings(BaseSettings):
    """What `trimtab serve` can be problems."""

    model_config = SettingsConfigDict(env_prefix="TRIMTAB_", extra="forbid")

    model: str | None = Field(
        None,
        description="the base model: a directory or a hub name, or `demo` for the embedded demo; "
        "this or `--upstream`",
    )
    scorer: Annotated[dict[str, ScorerSpec], NoDecode, BeforeValidator(_scorers)] = Field(
        default_factory=dict,
        description="scorers to serve, each `NAME=PATH[,key=value...]`; keys: `family`, "
        "`reference`, `alpha`, `reads`",
    )
    default_scorer: Annotated[dict[str, float], NoDecode, BeforeValidator(weights)] = Field(
        default_factory=dict,
        description="scorers of a request that names none, each `NAME=WEIGHT`; all with weight 1 "
        "if absent",
    )
    api_key: Annotated[list[Key], NoDecode, BeforeValidator(_keys)] = Field(
        default_factory=list,
        validate_default=False,
        description="keys that open what a user may call; without one, anybody may call it "
        "(several: apart by commas in the environment)",
    )
    admin_key: Annotated[SecretStr | None, BeforeValidator(_key)] = Field(
        None,
        validate_default=False,
        description="key that opens every route, and alone those that change what is served or "
        "how (scorers, vLLM's routes for operators); without one, these are off",
    )
    scorer_dir: Path | None = Field(
        None,
        description="directory whose subdirectories are checkpoints that may be loaded while "
        "serving; without one, none may",
    )
    host: str = Field("127.0.0.1", description="address to listen on; `0.0.0.0` for all")
    allowed_origins: Annotated[list[str], NoDecode, BeforeValidator(_origins)] = Field(
        default_factory=list,
        description="origins whose pages a browser lets call this server (CORS), `*` for all; "
        "none if absent",
    )
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    max_body_bytes: int = Field(
        8 * 2**20,
        gt=0,
        description="largest body of a request, in bytes; less where the context is short "
        "([limits.md](limits.md))",
    )
    max_in_flight: int | None = Field(
        None,
        ge=1,
        description="most answers that are on their way at once, beyond which requests get a 429; "
        "twice vLLM's `--max-num-seqs`, or `--upstream-concurrency`, if absent",
    )
    drain_timeout: float = Field(
        30,
        ge=0,
        le=86400,
        description="seconds that requests in flight may take after SIGTERM or SIGINT; what is "
        "open then ends with an error",
    )
    scorer_timeout: float = Field(
        SCORER_SECONDS,
        gt=0,
        le=3600,
        description="seconds that a scorer may take for a step; after three overruns within an "
        "hour it is suspended",
    )
    cache_bytes: int = Field(
        CACHE_BYTES, gt=0, description="memory for the scorers' prefix caches together, in bytes"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "warning", description="`debug`, `info`, `warning` or `error`, for Trimtab and vLLM alike"
    )
    vllm: dict[str, Any] = Field(
        default_factory=dict,
        description="further flags of vLLM, name to value; on the command line, simply give them",
    )

    upstream: str | None = Field(
        None,
        description="instead of MODEL, the base is an OpenAI-compatible endpoint: its URL, up to "
        "and with `/v1`",
    )
    upstream_model: str | None = Field(None, description="the model's name there")
    upstream_key: Annotated[SecretStr | None, BeforeValidator(_key)] = Field(
        None, validate_default=False, description="API key for the upstream"
    )
    upstream_api: Literal["completions", "chat"] = Field(
        "completions", description="what to ask there: `completions` or `chat`"
    )
    upstream_continue: Literal["continue_final_message", "prefix", "none"] = Field(
        "none",
        description="how a `chat` upstream goes on from a partial answer: "
        "`continue_final_message` (vLLM), `prefix` (DeepSeek, Mistral), or `none`: it cannot",
    )
    upstream_top: int = Field(
        20, ge=2, le=256, description="most likely tokens to ask the upstream for at each step"
    )
    upstream_block: int = Field(
        1,
        ge=1,
        le=64,
        description="tokens to ask for in one call where the temperature is 0; those that "
        "guidance would choose as well are kept",
    )
    upstream_end: Annotated[list[str], NoDecode, BeforeValidator(_words)] = Field(
        default_factory=list,
        description="how the upstream shows the token that ends an answer, if no tokenizer says",
    )
    upstream_concurrency: int = Field(16, ge=1, description="most calls to the upstream at once")
    upstream_retries: int = Field(3, ge=0, le=20, description="further tries of a call that fails")
    upstream_timeout: float = Field(30, gt=0, description="seconds that a call may take")
    upstream_deadline: float = Field(
        600, gt=0, description="seconds that a whole answer may take with an upstream"
    )
    upstream_length: int | None = Field(
        None,
        gt=1,
        description="most tokens of prompt and answer together with an upstream; as the "
        "tokenizer's directory says if absent",
    )
    tokenizer: str | None = Field(
        None,
        description="the upstream's tokenizer, a directory or a hub name: tokens are then asked "
        "for by id, as vLLM can, and any scorer may serve",
    )

    config: ClassVar[Path | None] = None

    def ready_to_load(self) -> Self:
        """The same; if scorers may be loaded while serving, with defaults that this cannot change.

        Raises:
            StartError: the scorer_dir is not there.
        """
        if self.admin_key is None or self.scorer_dir is None:
            return self
        if not self.scorer_dir.is_dir():
            raise StartError("there is no directory at scorer_dir; make one, or leave it out.")
        default = self.default_scorer or dict.fromkeys(self.scorer, 1.0)
        scorer_dir = self.scorer_dir.resolve()
        return self.model_copy(update={"default_scorer": default, "scorer_dir": scorer_dir})

    def keys(self) -> dict[str, Any]:
        """The keys as the middleware takes them (auth.ApiKeys)."""
        admin = self.admin_key
        return {
            "keys": [key.get_secret_value() for key in self.api_key],
            "admin_key": None if admin is None else admin.get_secret_value(),
        }

    @model_validator(mode="after")
    def _keys_apart(self) -> Self:
        if self.admin_key is not None and self.admin_key in self.api_key:
            raise ValueError("the admin_key is one of the api_keys; choose another")
        return self

    @model_validator(mode="after")
    def _one_base(self) -> Self:
        if (self.model is None) == (self.upstream is None):
            raise ValueError("give a model to serve, or an --upstream to ask; one of the two")
        if self.upstream is None:
            return self
        if self.upstream_model is None:
            raise ValueError("--upstream needs --upstream-model, the model's name there")
        if not self.upstream.startswith(("http://", "https://")):
            raise ValueError("--upstream must be a URL such as https://host/v1")
        if self.upstream_api == "chat" and self.upstream_continue == "none":
            raise ValueError(
                "steering goes token by token, so a chat upstream must go on from a partial "
                "answer; say how with --upstream-continue, or use --upstream-api completions"
            )
        if self.upstream_api == "chat" and self.tokenizer is not None:
            raise ValueError("--tokenizer goes with --upstream-api completions alone")
        return self

    def guidance(self) -> dict[str, Any]:
        """The `trimtab` part of vLLM's additional configuration.

        Raises:
            ScorerLoadError: it does not fit (trimtab.config.GuidanceConfig).
        """
        section = {
            "scorers": {name: spec.model_dump() for name, spec in self.scorer.items()},
            "default_scorers": self.default_scorer or None,
            "scorer_timeout": self.scorer_timeout,
            "cache_bytes": self.cache_bytes,
        }
        return GuidanceConfig.parse({"trimtab": section}).model_dump(exclude_none=True)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
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


def load(given: Mapping[str, Any], config: Path | None = None) -> Settings:
    """Settings out of what the command line gave, the environment and a YAML file.

    Raises:
        StartError: one of them does not fit.
    """
    named = config or (Path(path) if (path := os.environ.get(CONFIG_VARIABLE)) else None)
    if named is not None and not named.is_file():
        raise StartError(f"there is no configuration file at {named}.")
    source = type("Settings", (Settings,), {"config": named, "__doc__": Settings.__doc__})
    try:
        settings: Settings = source(**{k: v for k, v in given.items() if v not in (None, [], ())})
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False, include_input=False)
        problems = "; ".join(
            ": ".join(filter(None, (".".join(map(str, d["loc"])), d["msg"]))) for d in details
        )
        raise StartError(f"the settings do not fit: {problems}.") from None
    except yaml.YAMLError as error:
        raise StartError(f"{named} is not valid YAML: {error}") from None
    return settings


def table() -> str:
    """The settings as a Markdown table (docs/settings.md)."""
    lines = ["| command line, YAML | environment | meaning | default |", "|---|---|---|---|"]
    for name, field in Settings.model_fields.items():
        flag = {"model": "`MODEL`", "vllm": "any vLLM flag"}.get(
            name, f"`--{name.replace('_', '-')}`"
        )
        default = "" if field.is_required() else str(field.get_default(call_default_factory=True))
        shown = "" if default in ("", "[]", "{}", "None") else f"`{default}`"
        lines.append(
            f"| {flag}, `{name}` | `TRIMTAB_{name.upper()}` | {field.description} | {shown} |"
        )
    return "\n".join(lines) + "\n"
