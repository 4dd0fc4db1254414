"""A scorer that fails ends its own request alone, whichever way it fails."""

import concurrent.futures
import json
import time

import pytest
from httpx_sse import connect_sse

from faulty import FAILS_AT

pytestmark = pytest.mark.scorecard(letter="F")

CHAT = [{"role": "user", "content": "Write a review of a hotel."}]
LONG = {"temperature": 0, "max_tokens": 64, "ignore_eos": True}
FAULTY = ["raises", "nan", "infinite"]
BYSTANDERS = [
    {"prompt": prompt, "scorers": scorers, "beta": beta, **LONG}
    for prompt in ("The room was", "I bought a kettle and", "This cable")
    for scorers, beta in (({"sentiment": 1}, 4), ({"brevity": -1, "formality": 1}, 2))
]


@pytest.fixture(scope="module")
def alone(server):
    """What each bystander gets, one request at a time."""
    return [server.generate(**fields)["choices"][0]["token_ids"] for fields in BYSTANDERS]


def is_fault(error, scorer):
    assert error["type"] == "scorer_error"
    assert scorer in error["message"]
    assert "secret" not in error["message"]
    assert "Traceback" not in error["message"]
    return True


@pytest.mark.parametrize("scorer", [*FAULTY, "exits", "interrupts", "exhausts"])
def test_bystanders_stay_token_equal(server, alone, scorer):
    engine = server.engine().pid
    faulty = {"messages": CHAT, "scorers": {scorer: 1, "sentiment": 1}, **LONG}
    with concurrent.futures.ThreadPoolExecutor(9) as pool:
        near = [pool.submit(server.generate, **fields) for fields in BYSTANDERS]
        bad = [pool.submit(server.http.post, "/generate", json=faulty) for _ in range(3)]
    for future in bad:
        assert future.result().status_code == 500
        assert is_fault(future.result().json()["error"], scorer)
    assert [f.result()["choices"][0]["token_ids"] for f in near] == alone
    assert server.engine().pid == engine


@pytest.mark.parametrize("scorer", ["sleeps", "loops"])
def test_who_takes_too_long_is_left(server, alone, scorer):
    """One request; its neighbours wait for no more than the budget, and keep their tokens."""
    engine = server.engine().pid
    slow = {"messages": CHAT, "scorers": {scorer: 1}, "on_error": "unguided", **LONG}
    with concurrent.futures.ThreadPoolExecutor(9) as pool:
        bad = pool.submit(server.generate, **slow)
        near = [pool.submit(server.generate, **fields) for fields in BYSTANDERS]
    (choice,) = bad.result()["choices"]
    error = choice["guidance"]["error"]
    assert error == {"scorer": scorer, "message": "took longer than it may", "overrun": True}
    assert choice["finish_reason"] == "length"
    assert [f.result()["choices"][0]["token_ids"] for f in near] == alone
    assert server.engine().pid == engine
    limit = time.monotonic() + 60
    while server.http.get("/ready").status_code != 200 and time.monotonic() < limit:
        time.sleep(0.5)  # the call that was left has not ended yet
    assert server.http.get("/ready").status_code == 200
    scorers = {s["id"]: s for s in server.http.get("/v1/scorers").json()["data"]}
    assert scorers[scorer]["overruns"] == 1
    assert not scorers[scorer]["suspended"]
    counted = f'trimtab_scorer_overruns_total{{scorer="{scorer}"}} 1.0'
    assert counted in server.http.get("/metrics").text.splitlines()


def test_nothing_of_a_scorers_exception_is_logged(server):
    bad = {"messages": CHAT, "scorers": {"raises": 1}, **LONG}
    assert server.http.post("/generate", json=bad).status_code == 500
    log = server.log.read_text()
    assert "scorer raises failed: raised RuntimeError while scoring" in log
    assert "planted" not in log
    assert "Traceback" not in log


@pytest.mark.parametrize("scorer", FAULTY)
def test_openai_routes_end_with_the_error(server, scorer):
    request = {"messages": CHAT, "guidance": {"scorers": {scorer: 1}}, **LONG}
    whole = server.http.post("/v1/chat/completions", json={**request, "n": 2, "temperature": 1})
    assert whole.status_code == 500
    assert is_fault(whole.json()["error"], scorer)
    path = "/v1/chat/completions"
    stream = {**request, "stream": True, "ignore_eos": False, "max_tokens": 200}
    with connect_sse(server.http, "POST", path, json=stream) as source:
        events = [event.data for event in source.iter_sse()]
    assert events[-1] == "[DONE]"
    assert is_fault(json.loads(events[-2])["error"], scorer)
    assert len(events) < FAILS_AT  # it ended at once, not at the end of its text


def test_generate_streams_the_error(server):
    request = {"messages": CHAT, "scorers": {"nan": 1}, "stream": True, **LONG}
    with connect_sse(server.http, "POST", "/generate", json=request) as source:
        events = [event.data for event in source.iter_sse()]
    assert events[-1] == "[DONE]"
    assert is_fault(json.loads(events[-2])["error"], "nan")


@pytest.mark.parametrize("scorer", FAULTY)
def test_unguided_goes_on(server, scorer):
    answer = server.generate(messages=CHAT, scorers={scorer: 1}, on_error="unguided", **LONG)
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["guidance"]["error"]["scorer"] == scorer


def test_faults_are_counted_and_the_server_stays_ready(server):
    def count():
        lines = server.http.get("/metrics").text.splitlines()
        counts = [x for x in lines if x.startswith('trimtab_scorer_faults_total{scorer="nan"}')]
        return float(counts[0].split()[-1]) if counts else 0.0

    before = count()
    bad = {"messages": CHAT, "scorers": {"nan": 1}, **LONG}
    assert server.http.post("/generate", json=bad).status_code == 500
    assert count() == before + 1
    assert "WARNING trimtab.guide: scorer nan returned" in server.log.read_text()
    # The canary asks it again: one strange text does not take the server out of service.
    assert server.http.get("/ready").status_code == 200
    scorers = {s["id"]: s for s in server.http.get("/v1/scorers").json()["data"]}
    assert scorers["nan"]["faults"] >= 1
    assert scorers["nan"]["healthy"]
