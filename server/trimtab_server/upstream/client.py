"""Calls to the upstream: one connection pool, bounded concurrency, bounded retries.

A call is retried after 408, 409, 425, 429, any 5xx, a connection fault, a timeout and an unusable
answer; other 4xx are final. No message contains the upstream's text or key.

The size of an answer, compressed and decompressed, and the time of its call are bounded.
"""

import asyncio
import logging
import random
import zlib
from collections.abc import AsyncIterable, Callable, Mapping
from typing import Any, TypeVar

import httpx
from prometheus_client import Counter

from trimtab.errors import TrimtabError
from trimtab_models import strict_json
from trimtab_server.errors import UpstreamFailed, UpstreamTimeout
from trimtab_server.settings import Settings

log = logging.getLogger(__name__)

CALLS = Counter("trimtab_upstream_calls", "Calls to the upstream, by outcome", ["outcome"])
AGAIN = frozenset({408, 409, 425, 429})
FIRST_WAIT = 0.25
LONGEST_WAIT = 30.0
ANSWER_BYTES = 2**20
"""Maximum bytes of an answer without its alternatives."""
ALTERNATIVE_BYTES = 2**10
"""Maximum bytes of one alternative."""
GZIP = zlib.MAX_WBITS + 16
T = TypeVar("T")


class Unusable(Exception):
    """An unusable answer of the upstream; the call is retried."""


class _Retry(Exception):
    """A failed call; see `outcome` for whether it is retried."""

    def __init__(self, error: TrimtabError, outcome: str, wait: float = 0.0) -> None:
        super().__init__(outcome)
        self.error = error
        self.outcome = outcome
        self.wait = wait  # seconds, from Retry-After


class Client:
    """Sends POST requests to the upstream."""

    def __init__(self, settings: Settings, transport: httpx.AsyncBaseTransport | None = None):
        key = settings.upstream_key
        most = settings.upstream_concurrency
        headers = {"Accept-Encoding": "gzip"}
        if key:
            headers["Authorization"] = f"Bearer {key.get_secret_value()}"
        self.http = httpx.AsyncClient(
            base_url=str(settings.upstream).rstrip("/") + "/",
            headers=headers,
            timeout=None,  # the whole call is bounded in _post
            limits=httpx.Limits(max_connections=most, max_keepalive_connections=most),
            transport=transport,
        )
        self.alternatives = (settings.upstream_top + 1) * ALTERNATIVE_BYTES  # bytes per token
        self.slots = asyncio.Semaphore(most)
        self.seconds = settings.upstream_timeout
        self.tries = settings.upstream_retries + 1
        self.failing = False
        """Whether the last call failed after all retries."""

    async def ask(self, path: str, body: Mapping[str, Any], read: Callable[[Any], T]) -> T:
        """POST a body, and return the answer as parsed by `read`.

        Raises:
            UpstreamTimeout: the last try took too long.
            UpstreamFailed: it was refused, or its answer is unusable.
        """
        for left in reversed(range(self.tries)):
            try:
                async with self.slots:
                    result = read(await self._post(path, body))
            except Unusable as error:
                message = f"the upstream's answer cannot be used: {error}."
                failure = _Retry(UpstreamFailed(message), "unusable")
            except _Retry as error:
                failure = error
            else:
                CALLS.labels("ok").inc()
                self.failing = False
                return result
            CALLS.labels(failure.outcome).inc()
            if not left or failure.outcome == "refused":
                break
            log.info("the upstream failed (%s); retrying", failure.outcome)
            doubled = FIRST_WAIT * 2.0 ** (self.tries - 1 - left) * random.uniform(0.5, 1.0)
            await asyncio.sleep(min(max(doubled, failure.wait), LONGEST_WAIT))
        self.failing = True
        log.warning("the upstream failed: %s", failure.error)
        raise failure.error

    async def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        most = ANSWER_BYTES + body["max_tokens"] * self.alternatives
        try:
            async with (
                asyncio.timeout(self.seconds),
                self.http.stream("POST", path, json=body) as answer,
            ):
                _check_status(answer)
                content = await _content(answer, most)
        except (TimeoutError, httpx.TimeoutException):
            message = f"the upstream did not answer within {self.seconds:g} seconds."
            raise _Retry(UpstreamTimeout(message), "timeout") from None
        except (httpx.TransportError, httpx.DecodingError):
            message = "the upstream cannot be reached, or its connection broke."
            raise _Retry(UpstreamFailed(message), "connection") from None
        try:
            return strict_json.read(content)
        except ValueError:
            raise Unusable("it is not JSON") from None

    async def close(self) -> None:
        """Close the connections."""
        await self.http.aclose()


def _check_status(answer: httpx.Response) -> None:
    status = answer.status_code
    if status != 200:
        error = UpstreamFailed(f"the upstream answered with HTTP status {status}.")
        retry = status in AGAIN or status >= 500
        outcome = "limited" if status == 429 else "failed" if retry else "refused"
        raise _Retry(error, outcome, _retry_after(answer.headers))


async def _content(answer: httpx.Response, most: int) -> bytes:
    """The answer's decompressed bytes; httpx would decompress without a limit."""
    assert isinstance(answer.stream, AsyncIterable)
    content = bytearray()
    async for chunk in answer.stream:
        content += chunk
        if len(content) > most:
            raise Unusable(f"it has more than {most} bytes")
    encoding = answer.headers.get("content-encoding", "identity").strip().lower()
    if encoding == "identity":
        return bytes(content)
    if encoding != "gzip":
        raise Unusable("it is packed in a way that was not accepted")
    try:
        whole = zlib.decompressobj(GZIP).decompress(content, most + 1)
    except zlib.error:
        raise Unusable("it cannot be unpacked") from None
    if len(whole) > most:
        raise Unusable(f"it has more than {most} bytes")
    return whole


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds of `Retry-After`; dates are ignored."""
    digits = headers.get("retry-after", "").strip()
    return float(digits) if digits.isdecimal() and len(digits) < 10 else 0.0
