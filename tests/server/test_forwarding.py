"""Over an upstream, a request without guidance is forwarded whole: one call, unread, unchanged."""

import asyncio
import json

import httpx
import pytest
from upstream_fake import EVENTS, KEY, Fake

from test_upstream import CHAT, GUIDED, Here

pytestmark = pytest.mark.scorecard(letter="F")

PAGE = "https://page.example"
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"guidance": "a word"}}}]
SCHEMA = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}}
BODIES = {
    "/v1/chat/completions": {
        "messages": [
            {"role": "system", "content": None, "name": "é"},
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
            {"role": "tool", "tool_call_id": "1", "content": "2"},
        ],
        "tools": TOOLS,
        "response_format": SCHEMA,
        "logit_bias": {"1": 0.5},
        "presence_penalty": 0.25,
        "a_field_of_its_own": {"deep": [1, {"x": None}]},
    },
    "/v1/completions": {"prompt": ["a", "b"], "n": 2, "suffix": "c", "echo": True, "best_of": 3},
    "/v1/responses": {"input": "Hi", "tools": TOOLS, "text": {"format": SCHEMA}},
    "/v1/messages": {"messages": CHAT, "max_tokens": 5, "system": "s", "thinking": {"x": 1}},
}


@pytest.fixture
def here():
    return Here(Fake(), allowed_origins=[PAGE])


@pytest.mark.parametrize("path", BODIES)
async def test_it_is_one_call_with_the_whole_body(here, path):
    for guidance in ({}, {"guidance": None}):
        here.fake.calls.clear()
        answer = await here.http.post(
            path, json={**BODIES[path], **guidance}, headers={"Origin": PAGE}
        )
        assert answer.status_code == 200, answer.text
        assert here.fake.calls == [{**BODIES[path], "model": "m"}]
        body = answer.json()
        assert body["got"] == here.fake.calls[0]
        assert f"/v1/{body['kind']}" == path
        assert answer.headers["content-type"] == "application/json"
        assert "trimtab-guidance" not in answer.headers
        assert answer.headers["access-control-allow-origin"] == PAGE
    assert (await here.post(path, model="m", **BODIES[path])).status_code == 200
    assert here.fake.headers[-1]["authorization"] == f"Bearer {KEY}"
    preflight = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
    allowed = await here.http.options(path, headers=preflight)
    assert allowed.status_code == 200


@pytest.mark.parametrize("path", BODIES)
async def test_a_stream_is_passed_on_as_it_comes(here, path):
    answer = await here.post(path, stream=True, **BODIES[path])
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text == EVENTS
    assert len(here.fake.calls) == 1


async def test_anthropics_headers_are_passed_on_and_no_others(here):
    sent = {"anthropic-version": "2023-06-01", "anthropic-beta": "b", "x-api-key": "ours", "x": "y"}
    await here.http.post("/v1/messages", json=BODIES["/v1/messages"], headers=sent)
    received = here.fake.headers[-1]
    assert received["anthropic-version"] == "2023-06-01"
    assert received["anthropic-beta"] == "b"
    assert received["x-api-key"] == KEY
    assert "x" not in received
    await here.http.post("/v1/responses", json=BODIES["/v1/responses"], headers=sent)
    assert not {"anthropic-version", "x-api-key"} & set(here.fake.headers[-1])


async def test_what_is_guided_is_steered_or_refused_but_never_forwarded(here):
    for path in ("/v1/responses", "/v1/messages"):
        refused = await here.post(path, **BODIES[path], guidance=GUIDED)
        assert refused.status_code == 400
        assert "/v1/chat/completions" in refused.json()["error"]["message"]
    for path, body in BODIES.items():
        for place in (
            {"trimtab_beta": 1},
            {"vllm_xargs": {"trimtab_beta": 1}},
            {"extra_body": {"guidance": GUIDED}},
            {"options": {"guidance": GUIDED}},
        ):
            refused = await here.post(path, **body, **place)
            assert refused.status_code == 400, (path, place)
    assert not here.fake.calls
    guided = await here.post("/v1/completions", prompt="a", max_tokens=2, guidance=GUIDED)
    assert guided.json()["choices"][0]["guidance"]["steps"] == 2
    assert all(call["logprobs"] for call in here.fake.calls)  # steps, each by itself


async def broken(body):
    async def events():
        yield b'data: {"one": 1}\n\ndata: {"tw'
        raise httpx.ReadError(KEY)

    return httpx.Response(200, content=events(), headers={"content-type": "text/event-stream"})


FAULTS = {
    "the client's": (httpx.Response(400, json={"error": {"message": KEY}}), 400, None),
    "unknown": (httpx.Response(404, text=KEY), 400, None),
    "our key": (httpx.Response(401, text=KEY), 502, None),
    "busy": (httpx.Response(429, headers={"Retry-After": "7"}, text=KEY), 429, "7"),
    "busy without a time": (httpx.Response(429, text=KEY), 429, "1"),
    "failed": (httpx.Response(500, text=KEY), 502, None),
    "moved": (httpx.Response(307, headers={"Location": KEY}), 502, None),
    "no JSON": (httpx.Response(200, text=f"<html>{KEY}"), 502, None),
    "packed": (httpx.Response(200, headers={"content-encoding": "br"}), 502, None),
    "unreachable": (httpx.ConnectError(KEY), 502, None),
    "timeout": (httpx.ReadTimeout(KEY), 504, None),
}


@pytest.mark.parametrize("kind", FAULTS)
async def test_faults_are_reported_without_the_upstreams_text(here, kind, caplog):
    fault, status, after = FAULTS[kind]
    here.fake.faults = [fault]
    answer = await here.http.post(
        "/v1/chat/completions", json=BODIES["/v1/chat/completions"], headers={"Origin": PAGE}
    )
    assert answer.status_code == status
    assert answer.headers.get("retry-after") == after
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert KEY not in answer.text + caplog.text
    assert len(here.fake.calls) == 1
    healthy = status in (400, 429)
    assert here.app.state.trimtab.engine.client.failing != healthy
    assert (await here.post("/v1/completions", prompt="a")).status_code == 200
    assert not here.app.state.trimtab.engine.client.failing


@pytest.mark.parametrize("path", BODIES)
async def test_a_stream_that_breaks_ends_with_an_error(here, path):
    here.fake.faults = [broken]
    answer = await here.post(path, stream=True, **BODIES[path])
    events = answer.text.split("\n\n")
    assert events[0] == 'data: {"one": 1}'
    error = json.loads(events[2].rpartition("data: ")[2])
    assert "connection broke" in (error.get("error") or error)["message"]
    assert KEY not in answer.text
    assert here.app.state.trimtab.engine.client.slots._value == 16


async def test_an_answer_is_bounded_in_time_and_ends_with_its_client():
    async def sleeps(body):
        await asyncio.sleep(30)

    late = Here(Fake(), upstream_deadline=0.05)
    late.fake.faults = [sleeps]
    assert (await late.post("/v1/completions", prompt="a")).status_code == 504

    here, begun = Here(Fake()), asyncio.Event()

    async def begins(body):
        begun.set()
        await sleeps(body)

    here.fake.faults = [begins]
    asking = asyncio.create_task(here.post("/v1/completions", prompt="a"))
    await begun.wait()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert here.app.state.trimtab.engine.client.slots._value == 16


async def test_caps_and_keys_hold():
    here = Here(Fake(), api_key=["ours"])
    assert (await here.post("/v1/responses", input="Hi")).status_code == 401
    here.http.headers["x-api-key"] = "ours"
    for fields in ({"prompt": ["a"] * 17}, {"prompt": "a", "n": 9}, {"prompt": "a", "n": "2"}):
        assert (await here.post("/v1/completions", **fields)).status_code == 400
    assert not here.fake.calls
    assert (await here.post("/v1/completions", prompt=["a"] * 16, n=8)).status_code == 200
