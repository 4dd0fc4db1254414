"""Overload: so many answers at once, and for the rest a 429 at once, streams included."""

import asyncio
import time
from collections import Counter

import httpx
import pytest
from prometheus_client import REGISTRY
from upstream_fake import Fake

from test_upstream import GUIDED, TEXT, Here, no_waiting
from trimtab_server import caps, readiness
from trimtab_server.admission import TURNS, Admission

__all__ = ["no_waiting"]  # a fixture
MOST = 8


def busy():
    return REGISTRY.get_sample_value("trimtab_refused_requests_total", {"reason": "busy"}) or 0.0


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, 1),
        ({"prompt": "x", "n": 3}, 3),
        ({"prompt": ["x", "y"], "n": 3}, 6),
        ({"prompt": [1, 2, 3]}, 1),
        ({"prompt": [[1], [2]]}, 2),
        ({"messages": [{}, {}]}, 1),
        ({"messages": [[{}], [{}]], "n": 2}, 4),
        ({"search": {"method": "best_of_n", "n": 16}}, 16),
        ({"search": {"particles": 5}, "n": 2}, 5),
        ({"prompt": [], "n": 0}, 1),
        ({"prompt": "x", "n": 10**9}, 1),  # which is refused, and shall not stand in the way
        ({"prompt": {}, "n": "9", "search": "x"}, 1),
        ({"prompt": ["x"] * 10**5, "n": True}, 16),
    ],
)
def test_a_request_counts_as_its_answers(fields, expected):
    assert caps.answers(fields) == expected


class Slow(Fake):
    """An upstream that takes its time."""

    async def __call__(self, request):
        await asyncio.sleep(0.02)
        return await super().__call__(request)


async def flood(here, number, **fields):
    async def ask():
        began = time.perf_counter()
        answer = await here.post(**{"prompt": TEXT, "max_tokens": 4, **GUIDED, **fields})
        return answer, time.perf_counter() - began

    return await asyncio.gather(*(ask() for _ in range(number)))


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
async def test_five_hundred_at_once(stream, caplog):
    here = Here(Slow(), max_in_flight=MOST)
    before = busy()
    answers = await flood(here, 500, stream=stream)
    good = [took for answer, took in answers if answer.status_code == 200]
    refused = [answer for answer, _ in answers if answer.status_code != 200]
    assert len(good) == MOST
    for answer in refused:
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.json()["error"]["type"] == "rate_limit_error"
        assert answer.json()["error"]["code"] == "busy"
    assert busy() - before == len(refused)
    assert not caplog.records
    assert len(here.fake.calls) <= MOST * 8  # refused requests caused no call
    assert (await here.post(prompt=TEXT, **GUIDED)).status_code == 200  # all places are free again


async def test_there_is_a_bound_by_default():
    """As many as the upstream is asked at a time, and as many that wait for their turn."""
    here = Here(Slow(), upstream_concurrency=4)
    statuses = Counter(answer.status_code for answer, _ in await flood(here, 60))
    assert statuses == {200: TURNS * 4, 429: 60 - TURNS * 4}


async def test_without_a_bound_all_wait():
    """The control: as many as come are let in."""
    here = Here(Slow(), max_in_flight=10_000)
    answers = await flood(here, 60)
    assert {answer.status_code for answer, _ in answers} == {200}


async def test_status_routes_always_pass():
    here = Here(Slow(), max_in_flight=1)
    await readiness.check_all(here.app.state.trimtab)
    task = asyncio.create_task(here.post(prompt=TEXT, max_tokens=20, temperature=0, **GUIDED))
    await asyncio.sleep(0.03)
    assert (await here.post(prompt=TEXT, **GUIDED)).status_code == 429
    for path in ("/health", "/ready", "/metrics", "/v1/models", "/v1/scorers"):
        assert (await here.http.get(path)).status_code == 200
    assert (await task).status_code == 200


async def test_a_place_is_free_again_whatever_ends_a_request():
    async def fails(scope, receive, send):
        raise RuntimeError("planted")

    app = Admission(fails, most=1)
    scope = {"type": "http", "method": "POST", "path": "/generate", "headers": []}
    for _ in range(3):
        with pytest.raises(RuntimeError):
            await app(scope, None, None)
    assert app.taken == 0


async def test_one_large_request_passes_where_nothing_else_is():
    here = Here(Fake(), max_in_flight=2)
    answer = await here.post("/v1/completions", prompt=TEXT, n=8, max_tokens=1)
    assert answer.status_code == 200
    assert len(answer.json()["choices"]) == 8


@pytest.mark.engine
def test_five_hundred_at_once_over_the_engine(server):
    """As many as there is room for are answered, in time and alike; the rest are refused."""
    body = {"prompt": "The room was", "temperature": 0, "max_tokens": 8, "beta": 2}
    alone = server.generate(**body)["choices"][0]["token_ids"]
    headers = dict(server.http.headers)

    async def all_at_once():
        limits = httpx.Limits(max_connections=600)
        async with httpx.AsyncClient(
            base_url=server.url, headers=headers, limits=limits, timeout=120
        ) as http:

            async def ask(number):
                began = time.perf_counter()
                answer = await http.post("/generate", json={**body, "stream": number % 2 == 1})
                return answer, time.perf_counter() - began

            return await asyncio.gather(*(ask(number) for number in range(500)))

    answers = asyncio.run(all_at_once())
    good = [(answer, took) for answer, took in answers if answer.status_code == 200]
    refused = [answer for answer, _ in answers if answer.status_code != 200]
    assert {answer.status_code for answer in refused} == {429}
    assert all(answer.headers["retry-after"] for answer in refused)
    assert len(good) >= 64
    assert max(took for _, took in good) < 60
    whole = [
        answer.json() for answer, _ in good if answer.headers["content-type"] == "application/json"
    ]
    assert all(answer["choices"][0]["token_ids"] == alone for answer in whole)
    streams = [
        answer.text for answer, _ in good if "event-stream" in answer.headers["content-type"]
    ]
    assert all(text.endswith("data: [DONE]\n\n") for text in streams)
    assert "Traceback" not in server.log.read_text()
    assert server.generate(**body)["choices"][0]["token_ids"] == alone
    print(f"{len(good)} of 500 were answered, in {max(t for _, t in good):.1f} s at most")
