"""Retries of HTTP calls: the waits double, or follow the answer's Retry-After.

    Retrying(**policy(tries=4, first=0.5, longest=30.0))(call, argument)

`call` raises Retry if another attempt may succeed; the last attempt's Retry is raised.
AsyncRetrying does the same for coroutine functions.
"""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from tenacity import (
    RetryCallState,
    retry_if_exception_type,
    stop_after_attempt,
    wait_exponential,
    wait_random,
)
from tenacity.wait import wait_base


class Retry(Exception):
    """A failed attempt; another may succeed.

    after: seconds to wait before it, from Retry-After; None if the answer does not say.
    """

    def __init__(self, message: str, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


def policy(tries: int, first: float, longest: float) -> dict[str, Any]:
    """Keyword arguments of tenacity's Retrying and AsyncRetrying.

    tries: maximum attempts. first: about the seconds before the second one. longest: maximum
    seconds before any, even if Retry-After is longer.
    """
    return {
        "stop": stop_after_attempt(tries),
        "wait": _Wait(first, longest),
        "retry": retry_if_exception_type(Retry),
        "reraise": True,
    }


class _Wait(wait_base):
    """See policy: first · 2ⁿ + U(0, first) seconds without Retry-After."""

    def __init__(self, first: float, longest: float) -> None:
        self.backoff = wait_exponential(multiplier=first) + wait_random(0, first)
        self.longest = longest

    def __call__(self, retry_state: RetryCallState) -> float:
        failure = retry_state.outcome and retry_state.outcome.exception()
        after = failure.after if isinstance(failure, Retry) else None
        return min(self.longest, self.backoff(retry_state) if after is None else after)


def retry_after(value: str | None) -> float | None:
    """Seconds from now of a Retry-After header: seconds, or an HTTP date.

    None if it is absent or neither; 0 for a date that has passed.
    """
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(value)
        when = when if when.tzinfo else when.replace(tzinfo=UTC)
        return max(0.0, (when - datetime.now(UTC)).total_seconds())
    except (IndexError, OverflowError, TypeError, ValueError):  # whatever the endpoint sends
        return None
