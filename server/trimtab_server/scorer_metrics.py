"""Metrics of each scorer, which the engine counts: read from it when /metrics is.

A scrape costs one call to the engine, between two steps. If the engine does not answer in time, the
last numbers are served again, and `trimtab_ready` is 0.
"""

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

from prometheus_client import REGISTRY
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Receive, Scope, Send

from trimtab.errors import TrimtabError
from trimtab.scoring.meters import BUCKETS
from trimtab_server import metrics
from trimtab_server.allowed import route_path
from trimtab_server.recheck import SharedCheck
from trimtab_server.state import State

SECONDS = 2.0
"""Maximum time for the engine to answer; below Prometheus's own limit of 10 s."""
FRESH = 0.5
"""Seconds for which the last numbers are served again."""
SCORER = ("scorer",)


class ScorerMetrics(Collector):
    """The metrics of the scorers that a server has, from their last statuses."""

    def __init__(self) -> None:
        self.statuses: Sequence[Mapping[str, Any]] = ()
        self.healthy: Mapping[str, bool] = {}
        self.ready = False

    def collect(self) -> Iterator[Metric]:
        """The metric families, each with one series for each scorer."""
        yield GaugeMetricFamily(
            "trimtab_ready", "1 if the engine answers and every scorer is ready", float(self.ready)
        )
        ready = GaugeMetricFamily(
            "trimtab_scorer_ready", "1 if the scorer's last readiness check passed", labels=SCORER
        )
        for name, healthy in self.healthy.items():
            ready.add_metric((name,), float(healthy))
        yield ready
        yield self._info()
        yield from self._counts()
        yield from self._pools()
        yield self._seconds()

    def _info(self) -> Metric:
        family = GaugeMetricFamily(
            "trimtab_scorer_info",
            "1; the scorer's family, and the version that new requests use",
            labels=("scorer", "family", "version"),
        )
        for one in self.statuses:
            family.add_metric((one["name"], str(one["family"]), str(one["version"])), 1)
        return family

    def _counts(self) -> Iterator[Metric]:
        suspended = GaugeMetricFamily(
            "trimtab_scorer_suspended", "1 while the scorer is suspended", labels=SCORER
        )
        tokens = CounterMetricFamily(
            "trimtab_scorer_tokens", "Tokens that went through the scorer's networks", labels=SCORER
        )
        for one in self.statuses:
            suspended.add_metric((one["name"],), float(one["suspended"]))
            tokens.add_metric((one["name"],), one["tokens_forwarded"])
        yield from (suspended, tokens)

    def _pools(self) -> Iterator[Metric]:
        slots = GaugeMetricFamily(
            "trimtab_pool_tokens", "Tokens that fit into the scorer's prefix pools", labels=SCORER
        )
        used = GaugeMetricFamily(
            "trimtab_pool_used_tokens", "Tokens that are cached in them", labels=SCORER
        )
        evicted = CounterMetricFamily(
            "trimtab_pool_evicted_tokens",
            "Tokens that were dropped for others, of requests that had ended or were running",
            labels=("scorer", "requests"),
        )
        overflow = CounterMetricFamily(
            "trimtab_pool_overflow_tokens",
            "Tokens that did not fit, and were read again in the next step",
            labels=SCORER,
        )
        for name, pool in ((one["name"], one["meters"]["pool"]) for one in self.statuses):
            if pool["slots"] == 0:
                continue  # a scorer without a network
            slots.add_metric((name,), pool["slots"])
            used.add_metric((name,), pool["used"])
            evicted.add_metric((name, "ended"), pool["ended"])
            evicted.add_metric((name, "running"), pool["cut"])
            overflow.add_metric((name,), pool["overflow"])
        yield from (slots, used, evicted, overflow)

    def _seconds(self) -> Metric:
        family = HistogramMetricFamily(
            "trimtab_scoring_seconds",
            "Host seconds of one call of a scorer, for all rows of a step",
            labels=SCORER,
        )
        bounds = [*map(str, BUCKETS), "+Inf"]
        for one in self.statuses:
            seconds = one["meters"]["seconds"]
            counts = accumulate(seconds["counts"])
            family.add_metric(
                (one["name"],), list(zip(bounds, counts, strict=True)), seconds["sum"]
            )
        return family


SCORERS = ScorerMetrics()
"""Of the one server of this process."""
REGISTRY.register(SCORERS)


class Scrapes:
    """ASGI middleware: reads the scorers' numbers before /metrics is answered."""

    def __init__(self, app: ASGIApp, state: State) -> None:
        self.app = app
        self.state = state
        self.reading = SharedCheck()
        self.read = -FRESH  # time.monotonic of the last reading
        metrics.begin(state.scorers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http" and route_path(scope).rstrip("/") == "/metrics":
            await self._refresh()
        await self.app(scope, receive, send)

    async def _refresh(self) -> None:
        if time.monotonic() - self.read >= FRESH and not await self.reading.done(self._read):
            SCORERS.ready = False

    async def _read(self) -> None:
        state = self.state
        metrics.begin(state.scorers)
        try:
            async with asyncio.timeout(SECONDS):
                SCORERS.statuses = await state.statuses()
            answers = True
        except (TrimtabError, TimeoutError):
            answers = False
        suspended = {one["name"] for one in SCORERS.statuses if one["suspended"]}
        SCORERS.healthy = {
            name: state.complaint(name) is None and name not in suspended for name in state.scorers
        }
        healthy = all(SCORERS.healthy.values())
        SCORERS.ready = answers and healthy and state.engine.problem() is None
        self.read = time.monotonic()
