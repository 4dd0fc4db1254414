"""Retries: how long they wait, how often they try, and what they leave alone."""

import random
import time
from email.utils import formatdate

import pytest
from hypothesis import given as examples
from hypothesis import strategies as st
from tenacity import AsyncRetrying, Retrying

from trimtab_models.retries import Retry, policy, retry_after


def test_retry_after():
    assert retry_after(None) is None
    assert retry_after("2.5") == 2.5
    assert retry_after("soon") is None
    assert retry_after("Thu, 01 Jan 1970 00:00:00 GMT") == 0.0
    assert retry_after("Fri, 01 Jan 2100 00:00:00 -0000") > 1e9
    in_a_minute = formatdate(time.time() + 60, usegmt=True)
    assert 55 < retry_after(in_a_minute) <= 60
    assert retry_after(in_a_minute.replace("GMT", "")) > 55  # without a zone it is UTC
    assert retry_after(in_a_minute.replace(":", "")) is None  # the control


HOSTILE = ["9" * 5000, "nan", "inf", "-1", "1e400", "Fri, 01 Jan 99999999999999 00:00:00 GMT", ","]


@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: value[:12])
def test_no_value_breaks_it(value):
    after = retry_after(value)
    assert after is None or after >= 0


@examples(st.text(max_size=40) | st.from_regex(r"\w{3}, \d+ \w{3} \d+ \d+:\d+:\d+ \S+"))
def test_no_text_breaks_it(value):
    after = retry_after(value)
    assert after is None or after >= 0


class Endpoint:
    """Fails as planned, then returns 7."""

    def __init__(self, *failures):
        self.failures = list(failures)
        self.calls = 0

    def __call__(self):
        self.calls += 1
        if self.failures:
            raise self.failures.pop(0)
        return 7

    async def later(self):
        return self()


def waits(tries, *failures, longest=30.0):
    slept = []
    endpoint = Endpoint(*failures)
    retrying = Retrying(**policy(tries, 0.5, longest), sleep=slept.append)
    assert retrying(endpoint) == 7
    return slept


def test_waits_double_or_follow_the_answer():
    random.seed(0)
    first, second, third = waits(4, Retry("a"), Retry("b"), Retry("c"))
    assert 0.5 <= first <= 1
    assert 1 <= second <= 1.5
    assert 2 <= third <= 2.5
    assert waits(4, Retry("a", 0.0), Retry("b", 11.0), Retry("c", 99.0)) == [0.0, 11.0, 30.0]
    assert waits(9, *(Retry("a") for _ in range(8)))[-1] == 30.0


def test_the_last_failure_is_raised():
    endpoint = Endpoint(Retry("first", 0), Retry("second", 0), Retry("third", 0))
    with pytest.raises(Retry, match="second"):
        Retrying(**policy(2, 0.5, 30.0))(endpoint)
    assert endpoint.calls == 2


async def test_other_errors_are_not_retried():
    endpoint = Endpoint(ValueError("final"))
    with pytest.raises(ValueError, match="final"):
        await AsyncRetrying(**policy(5, 0.5, 30.0))(endpoint.later)
    assert endpoint.calls == 1
    assert await AsyncRetrying(**policy(5, 0.5, 30.0))(Endpoint(Retry("a", 0)).later) == 7
