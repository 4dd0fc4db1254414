"""Calls to the upstream: one connection pool, bounded concurrency, bounded retries.

A call is retried after 408, 409, 425, 429, any 5xx, a connection fault, a timeout and an unusable
answer; other 4xx are final. No message contains the upstream's text or key.

The size of an answer, compressed and decompressed, and the time of its call are bounded.
"""

import asyncio
import logging
import zlib
from collections.abc import AsyncIterable, Callable, Mapping
from typing import Any, TypeVar

import httpx
from tenacity import AsyncRetrying

from trimtab.adapters.openai.config import UpstreamConfig
from trimtab.errors import TrimtabError, UpstreamFailed, UpstreamTimeout
from trimtab_models import strict_json
from trimtab_models.retries import Retry, policy, retry_after

log = logging.getLogger(__name__)

RETRIED = frozenset({408, 409, 425, 429})
FIRST_WAIT = 0.25
LONGEST_WAIT = 30.0
ANSWER_BYTES = 2**20
"""Maximum bytes of an answer without its alternatives."""
ALTERNATIVE_BYTES = 2**10
"""Maximum bytes of one alternative."""
GZIP = zlib.MAX_WBITS + 16
T = TypeVar("T")


class UnusableAnswer(Exception):
    """An unusable answer of the upstream; the call is retried."""


class _Failed(Retry):
    """A failed call that may succeed later. `error` is for the client of the engine."""

    def __init__(self, error: TrimtabError, outcome: str, after: float | None = None) -> None:
        super().__init__(outcome, after)
        self.error = error
        self.outcome = outcome


class Client:
    """Sends POST requests to the upstream.

    on_call: called with the outcome of each call, see load_engine.
    """

    def __init__(
        self,
        config: UpstreamConfig,
        transport: httpx.AsyncBaseTransport | None = None,
        on_call: Callable[[str], Any] = lambda outcome: None,
    ) -> None:
        headers = {"Accept-Encoding": "gzip"}
        if config.key:
            headers["Authorization"] = f"Bearer {config.key}"
        most = config.concurrency
        self.http = httpx.AsyncClient(
            base_url=config.url.rstrip("/") + "/",
            headers=headers,
            timeout=None,  # the whole call is bounded in _post
            limits=httpx.Limits(max_connections=most, max_keepalive_connections=most),
            transport=transport,
        )
        self.alternatives = (config.top + 1) * ALTERNATIVE_BYTES  # bytes per token
        self.slots = asyncio.Semaphore(most)
        self.timeout = config.timeout
        self.tries = config.retries + 1
        self.on_call = on_call
        self.failing = False
        """Whether the last call failed after all retries."""

    async def ask(self, path: str, body: Mapping[str, Any], read: Callable[[Any], T]) -> T:
        """POST a body, and return the answer as parsed by `read`.

        Raises:
            UpstreamTimeout: the last try took too long.
            UpstreamFailed: it was refused, or its answer is unusable.
        """
        retrying = AsyncRetrying(**policy(self.tries, FIRST_WAIT, LONGEST_WAIT))
        try:
            result: T = await retrying(self._try, path, body, read)
        except (_Failed, UpstreamFailed) as failure:
            error = failure.error if isinstance(failure, _Failed) else failure
            self.failing = True
            log.warning("the upstream failed: %s", error)
            raise error from None
        self.failing = False
        return result

    async def _try(self, path: str, body: Mapping[str, Any], read: Callable[[Any], T]) -> T:
        try:
            async with self.slots:
                result = read(await self._post(path, body))
        except UnusableAnswer as error:
            self._failed("unusable")
            message = f"the upstream's answer cannot be used: {error}."
            raise _Failed(UpstreamFailed(message), "unusable") from None
        except _Failed as failure:
            self._failed(failure.outcome)
            raise
        except UpstreamFailed:
            self._failed("refused")
            raise
        self.on_call("ok")
        return result

    def _failed(self, outcome: str) -> None:
        self.on_call(outcome)
        log.info("a call to the upstream failed (%s)", outcome)

    async def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        most = ANSWER_BYTES + body["max_tokens"] * self.alternatives
        try:
            async with (
                asyncio.timeout(self.timeout),
                self.http.stream("POST", path, json=body) as answer,
            ):
                _check_status(answer)
                content = await _content(answer, most)
        except (TimeoutError, httpx.TimeoutException):
            message = f"the upstream did not answer within {self.timeout:g} seconds."
            raise _Failed(UpstreamTimeout(message), "timeout") from None
        except (httpx.TransportError, httpx.DecodingError):
            message = "the upstream cannot be reached, or its connection broke."
            raise _Failed(UpstreamFailed(message), "connection") from None
        try:
            return strict_json.read(content)
        except ValueError:
            raise UnusableAnswer("it is not JSON") from None

    async def close(self) -> None:
        """Close the connections."""
        await self.http.aclose()


def _check_status(answer: httpx.Response) -> None:
    status = answer.status_code
    if status == 200:
        return
    error = UpstreamFailed(f"the upstream answered with HTTP status {status}.")
    if status not in RETRIED and status < 500:
        raise error
    outcome = "limited" if status == 429 else "failed"
    raise _Failed(error, outcome, retry_after(answer.headers.get("retry-after")))


async def _content(answer: httpx.Response, most: int) -> bytes:
    """The answer's decompressed bytes; httpx would decompress without a limit."""
    assert isinstance(answer.stream, AsyncIterable)
    content = bytearray()
    async for chunk in answer.stream:
        content += chunk
        if len(content) > most:
            raise UnusableAnswer(f"it has more than {most} bytes")
    encoding = answer.headers.get("content-encoding", "identity").strip().lower()
    if encoding == "identity":
        return bytes(content)
    if encoding != "gzip":
        raise UnusableAnswer("it is packed in a way that was not accepted")
    try:
        whole = zlib.decompressobj(GZIP).decompress(content, most + 1)
    except zlib.error:
        raise UnusableAnswer("it cannot be unpacked") from None
    if len(whole) > most:
        raise UnusableAnswer(f"it has more than {most} bytes")
    return whole
