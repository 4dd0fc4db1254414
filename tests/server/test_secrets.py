"""The log of a run of good, bad and failing requests holds nothing of them.

That the same check finds what is there: test_logs.py, where the level debug logs everything.
"""

import contextlib

import httpx
import pytest
from conftest import KEY

from faulty import FAILS_AT

pytestmark = pytest.mark.scorecard(letter="S")

MARK = "zebracrossing"
CHAT = [{"role": "user", "content": f"Write of a {MARK} hotel."}]
LONG = {"temperature": 0, "max_tokens": FAILS_AT + 8, "ignore_eos": True}
MARKED = {"X-Request-Id": MARK, "X-Marked": MARK, "User-Agent": MARK}


def good(post):
    assert post("/generate", {"prompt": f"The {MARK}", "max_tokens": 4}).status_code == 200
    assert post("/v1/chat/completions", {"messages": CHAT, "max_tokens": 4}).status_code == 200
    fields = {"messages": CHAT, "max_tokens": 4, "guidance": {}, "request_id": MARK, "user": MARK}
    assert post("/v1/chat/completions", fields).status_code == 200
    fields = {"model": "demo", "messages": CHAT, "max_tokens": 4}
    assert post("/v1/messages", fields).status_code == 200
    assert post("/tokenize", {"prompt": MARK}).status_code == 200


def bad(post):
    chat = {"messages": CHAT, "max_tokens": 4}
    for path, fields in (
        ("/v1/chat/completions", {**chat, "model": MARK}),
        ("/v1/chat/completions", {**chat, "guidance": {"scorers": {MARK: 1}}}),
        ("/v1/chat/completions", {**chat, "temperature": MARK}),
        ("/v1/chat/completions", {"messages": [{"role": MARK, "content": 5}]}),
        ("/v1/chat/completions", {**chat, "tool_choice": {"type": MARK}}),
        ("/v1/chat/completions", {**chat, "response_format": {"type": MARK}}),
        ("/v1/completions", {"prompt": MARK * 2000}),
        ("/v1/completions", {"prompt": MARK, "model": MARK, "stream": True}),
        ("/v1/completions", {"prompt": MARK, "structured_outputs": {"grammar": f"{MARK} ::="}}),
        ("/v1/completions", {"prompt": MARK, "structured_outputs": {"regex": f"({MARK}"}}),
        ("/v1/completions", {"prompt": MARK, "logit_bias": {MARK: 1}}),
        ("/v1/completions", {"prompt": [7**9, 7**9 + 1]}),
        ("/v1/messages", {"messages": [{"role": MARK}], "max_tokens": 1}),
        ("/v1/responses", {"input": [{"type": MARK}]}),
        ("/v1/responses", {"input": MARK, "previous_response_id": MARK}),
        ("/generate", {"prompt": MARK, MARK: 1}),
        ("/detokenize", {"tokens": [MARK]}),
        ("/v1/load_lora_adapter", {"lora_name": MARK, "lora_path": MARK}),
        (f"/v1/{MARK}", {}),
    ):
        answer = post(path, fields)
        assert 400 <= answer.status_code < 500, (path, fields, answer.text)
        assert MARK not in answer.text, path
        assert str(7**9) not in answer.text


def failing(post):
    for scorer in ("raises", "nan", "infinite"):
        fields = {"messages": CHAT, "scorers": {scorer: 1}, **LONG}
        for _ in range(3):
            assert post("/generate", fields).status_code == 500
        guided = {"messages": CHAT, "guidance": {"scorers": {scorer: 1}}, **LONG}
        assert post("/v1/chat/completions", guided).status_code == 500
        post("/v1/chat/completions", {**guided, "stream": True})


def cut(server):
    """Requests that are left in the middle, and what is no request."""
    for path in ("/v1/chat/completions", "/generate"):
        fields = {"messages": CHAT, "max_tokens": 300, "stream": True}
        with server.http.stream("POST", path, json=fields, headers=MARKED) as answer:
            next(answer.iter_bytes())
    with httpx.Client(base_url=server.url) as anyone:
        anyone.get(f"/v1/models?key={MARK}", headers={"Authorization": f"Bearer {MARK}"})
        with contextlib.suppress(httpx.HTTPError):
            anyone.get("/", headers={MARK: MARK * 5000})


@pytest.mark.parametrize("repeat", range(2))
def test_nothing_of_a_request_is_in_the_log(server, repeat):
    def post(path, fields):
        return server.http.post(f"{path}?{MARK}={MARK}", json=fields, headers=MARKED)

    ids = post("/tokenize", {"messages": CHAT}).json()["tokens"]
    good(post)
    bad(post)
    failing(post)
    cut(server)
    log = server.log.read_text()
    for secret in (
        MARK,
        KEY,
        str(7**9),
        str(7**9 + 1),
        "/etc/passwd",
        ", ".join(map(str, ids[:4])),
    ):
        assert secret not in log
    assert "scorer raises failed" in log  # what is said instead
    assert log.count("scorer raises failed") < 3
    assert "Traceback" not in log
