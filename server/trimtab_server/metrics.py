"""Trimtab's metrics, in the same Prometheus registry as vLLM's own (`GET /metrics`).

What the front end counts is here; what the engine counts for each scorer is in scorer_metrics.py.
No label comes from a client: not β, not the request. Every series exists from the start, with 0, so
that a rate sees its first increase.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client import Counter, Gauge, Histogram

OUTCOMES = ("guided", "fault", "unrecorded")
REASONS = ("bodies", "busy", "connections", "large_headers", "no_http", "slow_headers")
"""Why a request is refused before the engine."""

REQUESTS = Counter("trimtab_guided_choices", "Guided choices that ended, by outcome", ["outcome"])
FAULTS = Counter("trimtab_scorer_faults", "Choices in which a scorer failed", ["scorer"])
OVERRUNS = Counter("trimtab_scorer_overruns", "Choices in which a scorer took too long", ["scorer"])
STEPS = Counter("trimtab_steps", "Tokens generated under guidance")
SCORED_STEPS = Counter("trimtab_scored_steps", "Tokens for which scorers were called")
SCORED_TOKENS = Counter("trimtab_scored_tokens", "Candidates that were scored")
REFUSED = Counter(
    "trimtab_refused_requests", "Requests refused before the engine, by reason", ["reason"]
)
KL = Histogram(
    "trimtab_kl_nats",
    "KL divergence of a guided choice from the base model, in nats",
    buckets=(0.0, 0.1, 0.3, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0, 40.0, 80.0),
)

KL_TAIL = Counter(
    "trimtab_kl_tail_nats", "Nats of guided choices that were spent on cutting the tail"
)

IN_FLIGHT = Gauge("trimtab_answers_in_flight", "Answers that were admitted and have not ended")
LIMIT = Gauge("trimtab_answers_limit", "Maximum answers in flight; beyond it, requests get a 429")

for _outcome in OUTCOMES:
    REQUESTS.labels(_outcome)
for _reason in REASONS:
    REFUSED.labels(_reason)


def begin(scorers: Iterable[str]) -> None:
    """Make the series of some scorers."""
    for name in scorers:
        FAULTS.labels(name)
        OVERRUNS.labels(name)


def observe(record: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Count one ended choice; return its error, if any.

    Scorer names come from the operator, so their number is bounded.
    """
    if record is None:
        REQUESTS.labels("unrecorded").inc()
        return None
    STEPS.inc(record["steps"])
    SCORED_STEPS.inc(record["scored_steps"])
    SCORED_TOKENS.inc(record["scored_tokens"])
    KL.observe(max(record["kl"], 0.0))
    KL_TAIL.inc(record["kl_tail"])
    error: Mapping[str, Any] | None = record["error"]
    REQUESTS.labels("fault" if error else "guided").inc()
    if error:
        FAULTS.labels(error["scorer"]).inc()
        if error["overrun"]:
            OVERRUNS.labels(error["scorer"]).inc()
    return error
