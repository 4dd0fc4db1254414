"""OpenTelemetry traces: a span for each POST, and one for each guided choice.

    POST /generate          continues the client's `traceparent`
      ├── llm_request       vLLM's own, for each call of the engine
      └── trimtab.choice    strengths, KL, steps and scorer time of one guided choice

Without `--otlp-traces-endpoint` nothing is recorded. No span has anything of a prompt or an answer.
"""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trimtab.engine import Record
from trimtab.errors import StartError
from trimtab.params import GuidanceParams
from trimtab_server.route_names import template

SECONDS = "scorer_seconds"
"""The field of a record that has the time of its scorers, taken out before it is answered."""
TRACE_ID = "trimtab_trace_id"
"""Scope entry of a traced request, for the access log."""
PROPAGATOR = TraceContextTextMapPropagator()
COUNTS = ("kl", "kl_tail", "steps", "scored_steps", "scored_tokens")


@dataclass
class Tracing:
    """Whether this process traces, and by which tracer."""

    tracer: trace.Tracer | None = None


TRACING = Tracing()


def switch_on() -> None:
    """Trace from now on, with the provider that vLLM, or `export`, sets for the process."""
    os.environ.setdefault("OTEL_SERVICE_NAME", "trimtab")
    TRACING.tracer = trace.get_tracer("trimtab", version("trimtab"))


def on() -> bool:
    """Whether this process traces."""
    return TRACING.tracer is not None


def export(endpoint: str) -> None:
    """Send spans to an endpoint, as vLLM does: by gRPC, or as OTEL_EXPORTER_OTLP_TRACES_PROTOCOL.

    Raises:
        StartError: OpenTelemetry's SDK is not installed.
    """
    switch_on()
    try:
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        if os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc") == "grpc":
            from opentelemetry.exporter.otlp.proto.grpc import trace_exporter as grpc

            exporter: Any = grpc.OTLPSpanExporter(endpoint=endpoint, insecure=True)
        else:
            from opentelemetry.exporter.otlp.proto.http import trace_exporter as http

            exporter = http.OTLPSpanExporter(endpoint=endpoint)
    except ImportError:
        raise StartError(
            "--otlp-traces-endpoint needs OpenTelemetry's SDK; install trimtab[otel]."
        ) from None
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)


def headers() -> dict[str, str] | None:
    """`traceparent` of the current span, for a call to an engine; None if there is none."""
    carrier: dict[str, str] = {}
    PROPAGATOR.inject(carrier)
    return carrier or None


class Spans:
    """ASGI middleware: a span for each POST, which continues the client's trace."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        tracer = TRACING.tracer
        if tracer is None or scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        sent = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        route = template(scope)
        with tracer.start_as_current_span(
            f"POST {route}",
            context=PROPAGATOR.extract(sent),
            kind=SpanKind.SERVER,
            attributes={"http.request.method": "POST", "http.route": route},
            record_exception=False,  # its text may be of the request
            set_status_on_exception=False,
        ) as span:
            scope[TRACE_ID] = trace.format_trace_id(span.get_span_context().trace_id)

            async def note(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                    if message["status"] >= 500:
                        span.set_status(Status(StatusCode.ERROR))
                await send(message)

            await self.app(scope, receive, note)


def choice(begun: int, guidance: GuidanceParams, record: Record | None) -> None:
    """Record the span of a guided choice that has ended; takes the scorer time out of its record.

    begun: time.time_ns() at its start.
    """
    if TRACING.tracer is None:
        return
    record = record if record is not None else {}
    attributes: dict[str, Any] = {"trimtab.scorers": sorted(guidance.scorers or ())}
    attributes |= _strength(guidance, record)
    attributes |= {f"trimtab.{name}": record[name] for name in COUNTS if name in record}
    for name, seconds in record.pop(SECONDS, {}).items():
        attributes[f"trimtab.scorer_seconds.{name}"] = seconds
    for name, score in record.get("scores", {}).items():
        attributes[f"trimtab.score.{name}"] = score
    span = TRACING.tracer.start_span("trimtab.choice", start_time=begun, attributes=attributes)
    if (error := record.get("error")) is not None:
        span.set_attribute("trimtab.fault.scorer", error["scorer"])
        span.set_status(Status(StatusCode.ERROR, error["message"]))
    span.end(time.time_ns())


def _strength(guidance: GuidanceParams, record: Mapping[str, Any]) -> dict[str, float]:
    """β, as requested, or the mean that a budget has set."""
    if guidance.kl_budget is None:
        return {"trimtab.beta": guidance.beta}
    mean = record.get("beta", {}).get("mean")
    known = {} if mean is None else {"trimtab.beta": mean}
    return {**known, "trimtab.kl_budget": guidance.kl_budget}
