"""Settings for whoever operates a server: logs and traces."""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings


class OperationSettings(BaseSettings):
    """A part of Settings (settings.py)."""

    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "warning", description="`debug`, `info`, `warning` or `error`, for Trimtab and vLLM"
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="`text`, or `json` for one JSON object per line"
    )
    access_log: bool = Field(
        False,
        description="log one line for each request: route, status, time and request id, no content",
    )
    otlp_traces_endpoint: str | None = Field(
        None,
        description="URL to which OpenTelemetry traces are sent; default: no traces",
    )


def last(fields: Mapping[str, FieldInfo]) -> dict[str, FieldInfo]:
    """Fields of Settings, in the order in which they are listed: those of this class come last."""
    own = OperationSettings.model_fields
    return {name: fields[name] for name in [*(n for n in fields if n not in own), *own]}
