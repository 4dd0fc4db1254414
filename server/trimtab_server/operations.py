"""Settings for whoever operates a server: logs and traces."""

from typing import Literal

from pydantic import Field
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
