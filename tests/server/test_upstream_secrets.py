"""With an upstream too, nothing of a request or of a key is in the log or in a refusal."""

import logging

import httpx
import pytest
from upstream_fake import KEY, Fake

from test_upstream import GUIDED, Here
from trimtab.logs import Discreet
from trimtab_server.refusals import FAILED

MARK = "zebracrossing"
USER = "a-users-key"
SCORERS = [
    "good=upstream_fake:likes_good,family=function,reads=text",
    "tells=test_upstream_secrets:tells,family=function,reads=text",
]


def tells(text):
    if MARK in text:
        raise RuntimeError(f"planted: {text}")
    return 0.0


@pytest.fixture
def here():
    made = Here(Fake(), scorer=SCORERS, upstream=f"http://{MARK}:{KEY}@upstream/v1", api_key=[USER])
    made.http.headers["Authorization"] = f"Bearer {USER}"
    return made


@pytest.fixture
def log(caplog):
    """As the server's own handler shows it at the default level."""
    discreet = Discreet()
    caplog.handler.addFilter(discreet)
    caplog.set_level(logging.WARNING)
    yield caplog
    caplog.handler.removeFilter(discreet)


async def run(here):
    """Good, bad and failing requests, each marked; their answers."""
    prompt = f"Say {MARK}:"
    yield await here.post(prompt=prompt, max_tokens=2, **GUIDED)
    yield await here.post("/v1/completions", prompt=prompt, max_tokens=2)
    for fields in (
        {"prompt": prompt, MARK: 1},
        {"prompt": prompt, "temperature": MARK},
        {"prompt": prompt, "scorers": {MARK: 1}},
        {"prompt": prompt, "scorers": {"tells": 1}},
        {"messages": [{"role": "user", "content": prompt}], "scorers": {"tells": 1}},
    ):
        yield await here.post(**fields)
    for path, fields in (
        ("/v1/completions", {"prompt": prompt, "model": MARK}),
        ("/v1/chat/completions", {"messages": [{"role": MARK}]}),
        (f"/v1/{MARK}", {}),
        ("/v1/models", {MARK: 1}),
    ):
        yield await here.post(path, **fields)
    yield await here.http.post("/generate", content=MARK, headers={"X-Request-Id": MARK})
    for fault in (
        httpx.Response(401, text=f"{KEY} {MARK}"),
        httpx.Response(500, text=f"{KEY} {MARK}"),
        httpx.Response(200, text=f"{KEY} {MARK}"),
        httpx.Response(200, json={"choices": [{"text": MARK, "logprobs": MARK}]}),
        httpx.ConnectError(f"{KEY} {MARK}"),
    ):
        here.fake.faults = [fault] * 9
        yield await here.post(prompt=prompt, **GUIDED)
        here.fake.faults = []


@pytest.mark.slow
async def test_nothing_is_in_the_log_nor_in_a_refusal(here, log):
    answers = [answer async for answer in run(here)]
    assert [answer.status_code for answer in answers[:2]] == [200, 200]
    for answer in answers[2:]:
        assert answer.status_code >= 400
        assert MARK not in answer.text
        assert answer.json()["error"]["message"]
    for secret in (MARK, KEY, USER):
        assert secret not in log.text
    assert "scorer tells failed: raised RuntimeError" in log.text


async def test_the_check_finds_what_is_there(here, caplog):
    """The control: at debug, a scorer's exception is logged with the text of the request."""
    caplog.set_level(logging.DEBUG)
    assert (await here.post(prompt=MARK, scorers={"tells": 1})).status_code == 500
    assert MARK in caplog.text


async def test_uncaught_errors_have_our_shape(here, log, monkeypatch):
    def fails(*_):
        raise KeyError(MARK)

    monkeypatch.setattr("trimtab_server.routes.generate.parse", fails)
    answer = await here.post(prompt="x")
    assert answer.status_code == 500
    assert answer.json()["error"]["message"] == FAILED
    assert "KeyError" in log.text
    assert MARK not in log.text
