"""Calls to the upstream: one connection pool, a bound on calls at once, bounded retries.

A call is tried again after 408, 409, 425, 429, any 5xx, a fault of the connection, a timeout, and
an answer that cannot be used; not after another 4xx, which would only be refused again. No message
holds what the upstream said, nor its key.
"""

import asyncio
import json
import logging
import random
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import httpx
from prometheus_client import Counter

from trimtab.errors import TrimtabError
from trimtab_server.errors import UpstreamFailed, UpstreamTimeout
from trimtab_server.settings import Settings

log = logging.getLogger(__name__)

CALLS = Counter("trimtab_upstream_calls", "Calls to the upstream, by outcome", ["outcome"])
AGAIN = frozenset({408, 409, 425, 429})
FIRST_WAIT = 0.25
LONGEST_WAIT = 30.0
T = TypeVar("T")


class Unusable(Exception):
    """An answer of the upstream that cannot be used; it may do better when asked again."""


class _Retry(Exception):
    """A call failed such that it is worth another try."""

    def __init__(self, error: TrimtabError, outcome: str, wait: float = 0.0) -> None:
        super().__init__(outcome)
        self.error = error
        self.outcome = outcome
        self.wait = wait  # seconds that the upstream asks for


class Client:
    """The upstream, as far as one POST goes."""

    def __init__(self, settings: Settings, transport: httpx.AsyncBaseTransport | None = None):
        key = settings.upstream_key
        most = settings.upstream_concurrency
        self.http = httpx.AsyncClient(
            base_url=str(settings.upstream).rstrip("/") + "/",
            headers={"Authorization": f"Bearer {key.get_secret_value()}"} if key else None,
            timeout=None,  # one bound on the whole call, below
            limits=httpx.Limits(max_connections=most, max_keepalive_connections=most),
            transport=transport,
        )
        self.slots = asyncio.Semaphore(most)
        self.seconds = settings.upstream_timeout
        self.tries = settings.upstream_retries + 1
        self.failing = False
        """Whether the last call failed for good."""

    async def ask(self, path: str, body: Mapping[str, Any], read: Callable[[Any], T]) -> T:
        """POST a body, and what `read` makes of the answer.

        Raises:
            UpstreamTimeout: the last try took too long.
            UpstreamFailed: it was refused, or nothing usable came back.
        """
        for left in reversed(range(self.tries)):
            try:
                async with self.slots:
                    found = read(await self._post(path, body))
            except Unusable as error:
                told = f"the upstream's answer cannot be used: {error}."
                failure = _Retry(UpstreamFailed(told), "unusable")
            except _Retry as error:
                failure = error
            else:
                CALLS.labels("ok").inc()
                self.failing = False
                return found
            CALLS.labels(failure.outcome).inc()
            if not left or failure.outcome == "refused":
                break
            log.info("the upstream failed (%s); trying again", failure.outcome)
            doubled = FIRST_WAIT * 2.0 ** (self.tries - 1 - left) * random.uniform(0.5, 1.0)
            await asyncio.sleep(min(max(doubled, failure.wait), LONGEST_WAIT))
        self.failing = True
        log.warning("the upstream failed: %s", failure.error)
        raise failure.error

    async def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        try:
            async with asyncio.timeout(self.seconds):
                answer = await self.http.post(path, json=body)
        except (TimeoutError, httpx.TimeoutException):
            told = f"the upstream did not answer within {self.seconds:g} seconds."
            raise _Retry(UpstreamTimeout(told), "timeout") from None
        except (httpx.TransportError, httpx.DecodingError):
            told = "the upstream cannot be reached, or its connection broke."
            raise _Retry(UpstreamFailed(told), "connection") from None
        status = answer.status_code
        if status != 200:
            error = UpstreamFailed(f"the upstream answered with HTTP status {status}.")
            again = status in AGAIN or status >= 500
            outcome = "limited" if status == 429 else "failed" if again else "refused"
            raise _Retry(error, outcome, _asked_wait(answer.headers))
        try:
            return json.loads(answer.content)
        except (ValueError, RecursionError):
            raise Unusable("it is not JSON") from None

    async def close(self) -> None:
        """Close the connections."""
        await self.http.aclose()


def _asked_wait(headers: Mapping[str, str]) -> float:
    """Seconds of `Retry-After`; a date there is too rare to read."""
    digits = headers.get("retry-after", "").strip()
    return float(digits) if digits.isdecimal() and len(digits) < 10 else 0.0
