"""The sizes of a body's parts: what is refused, before anything heavy, and in linear time."""

import json
import time

import pytest
from starlette.responses import JSONResponse
from starlette.testclient import TestClient
from upstream_fake import Fake

import covered
from growth import LINEAR, exponent
from test_upstream import Here
from trimtab.errors import InvalidRequest
from trimtab_server import sizes
from trimtab_server.limits import BodyLimit
from trimtab_server.sizes import SHORT, Bounds, Sizes, check

pytestmark = pytest.mark.scorecard(letter="B")

BOUNDS = Bounds.of(tokens=512, longest=16, max_body_bytes=2**23)
CHAT = [{"role": "user", "content": "hi"}]
HOSTILE = "/a" * 4096


def message(**fields):
    return {"messages": [{**CHAT[0], **fields}]}


REFUSED = {
    "model": ({"model": HOSTILE}, "model"),
    "user": ({"user": HOSTILE}, "user"),
    "request id": ({"request_id": HOSTILE}, "request_id"),
    "cache salt": ({"cache_salt": HOSTILE}, "cache_salt"),
    "unknown field": ({"zebra": HOSTILE}, None),
    "metadata": ({"metadata": {"a": HOSTILE}}, "metadata"),
    "stop": ({"stop": [HOSTILE]}, "stop"),
    "role": (message(role=HOSTILE), "messages"),
    "name": (message(name=HOSTILE), "messages"),
    "tool call": (message(tool_calls=[{"id": HOSTILE}]), "messages"),
    "tool call's id": (message(tool_call_id=HOSTILE), "messages"),
    "part's type": (message(content=[{"type": HOSTILE}]), "messages"),
    "image": (message(content=[{"image_url": {"url": HOSTILE}}]), "messages"),
    "tool's name": ({"tools": [{"function": {"name": HOSTILE}}]}, "tools"),
    "tool choice": ({"tool_choice": {"function": {"name": HOSTILE}}}, None),
    "schema": ({"response_format": {"json_schema": {"schema": "x" * 2**17}}}, "response_format"),
    "grammar": ({"structured_outputs": {"grammar": "x" * 2**17}}, "structured_outputs"),
    "template": ({"chat_template": "x" * 2**17}, "chat_template"),
    "key": ({"prompt": "x", "metadata": {HOSTILE: 1}}, "metadata"),
    "key of a schema": ({"tools": [{"parameters": {HOSTILE: 1}}]}, "tools"),
    "xargs": ({"vllm_xargs": {"a": HOSTILE}}, None),
    "scorers": ({"guidance": {"scorers": {HOSTILE: 1}}}, None),
    "prompt": ({"prompt": "x" * (512 * 16 + 1)}, "prompt"),
    "one of the prompts": ({"prompt": ["x", "x" * (512 * 16 + 1)]}, "prompt"),
    "content": (message(content="x" * (512 * 16 + 1)), "messages"),
    "text part": (message(content=[{"type": "text", "text": "x" * 9000}]), "messages"),
    "input": ({"input": "x" * 9000}, "input"),
    "system": ({"system": "x" * 9000}, "system"),
    "token ids": ({"prompt": [1] * 513}, "prompt"),
    "token ids of generate": ({"prompt_token_ids": [1] * 513}, "prompt_token_ids"),
    "one list of the ids": ({"prompt": [[1], [1] * 513]}, "prompt"),
    "10⁶ prompts": ({"prompt": ["x"] * 10**6}, "prompt"),
    "10⁶ messages": ({"messages": CHAT * 10**6}, "messages"),
    "10⁶ messages that are none": ({"messages": [1, "x"] * 500_000}, "messages"),
    "parts": (message(content=[{"type": "text", "text": "x"}] * 300), "messages"),
    "input items": ({"input": [{}] * 2000}, "input"),
    "tools": ({"tools": [{}] * 600}, "tools"),
    "fields": ({f"f{i}": 1 for i in range(300)}, None),
    "values": ({"metadata": {f"{i}": [None] * 2000 for i in range(20)}}, None),
    "many keys": ({"logit_bias": {f"{i}": 1 for i in range(10**5)}}, None),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name):
    fields, param = REFUSED[name]
    began = time.perf_counter()
    with pytest.raises(InvalidRequest) as refused:
        check(fields, BOUNDS)
    assert time.perf_counter() - began < 0.25
    assert refused.value.param == param
    assert HOSTILE not in refused.value.message
    assert "zebra" not in refused.value.message


PASSES = [
    {"prompt": "x" * 512 * 16},
    {"prompt": ["x" * 512 * 16] * 16},
    {"prompt": [1] * 512},
    {"prompt": [[1] * 512] * 16},
    {"prompt": [1] * 600, "truncate_prompt_tokens": 100},
    {"model": "a" * SHORT, "stop": ["x" * SHORT] * 4},
    {"messages": CHAT * 1000, "tools": [{"parameters": {"type": "object"}}] * 100},
    {"allowed_token_ids": [1] * 100_000},
    {"response_format": {"json_schema": {"schema": {"description": "x" * 8000}}}},
    {"prompt": "x", "n": None, "seed": 1.5, "echo": True},
    {},
]


@pytest.mark.parametrize("fields", PASSES, ids=range(len(PASSES)))
def test_what_passes(fields):
    check(fields, BOUNDS)


def test_images_pass_where_the_model_takes_them():
    fields = message(content=[{"type": "image_url", "image_url": {"url": "x" * 10**6}}])
    media = Bounds.of(512, 16, 2**23, media=True)
    check(fields, media)
    assert media.body == 2**23
    with pytest.raises(InvalidRequest):
        check(message(role="x" * 10**6), media)


def test_bounds_follow_the_context():
    small, large = Bounds.of(512, 13, 2**23), Bounds.of(131_072, 128, 2**23)
    assert (small.text, small.body) == (512 * 13, 2**19)
    assert (large.text, large.body) == (131_072 * 16, 2**23)
    assert Bounds.of(512, 13, 1000).body == 1000
    assert Bounds.of(512, 128, 2**23).text == 512 * 128  # a prompt of spaces alone


GROWING = {
    "text": lambda n: {"prompt": "x" * n},
    "prompts": lambda n: {"prompt": ["x"] * n},
    "ids": lambda n: {"prompt": [1] * n},
    "ids but for the last": lambda n: {"prompt": [*([1] * n), "x"]},
    "messages": lambda n: {"messages": CHAT * n},
    "keys": lambda n: {"metadata": {str(i): 1 for i in range(n)}},
    "fields": lambda n: {str(i): 1 for i in range(n)},
    "lists": lambda n: {"metadata": {"a": [[[]]] * n}},
    "wide": lambda n: {"metadata": {"a": [{"b": "c"}] * 100 * min(n // 100, 300)}},
}


@pytest.mark.parametrize("name", GROWING)
def test_time_grows_with_the_length(name):
    bodies = {n: GROWING[name](n) for n in (2**12, 2**16)}

    def attempt(n):
        try:
            check(bodies[n], BOUNDS)
        except InvalidRequest:
            return

    assert exponent(attempt, 2**12) < LINEAR


async def echo(scope, receive, send):
    body = (await receive())["body"]
    answer = {"parsed": scope.get("trimtab.parsed"), "body": body.decode()}
    await JSONResponse(answer)(scope, receive, send)


@pytest.fixture
def client():
    return TestClient(BodyLimit(Sizes(echo, BOUNDS), BOUNDS.body))


def test_a_body_is_handed_on_as_it_came_and_parsed(client):
    answer = client.post("/any", content=b'{"prompt":  "x"}').json()
    assert answer == {"parsed": {"prompt": "x"}, "body": '{"prompt":  "x"}'}
    assert client.post("/any").json() == {"parsed": None, "body": ""}
    assert client.get("/any").json()["parsed"] is None


@pytest.mark.parametrize("kind", ["application/json", "application/x+json; charset=utf-8", None])
def test_every_route_has_them(client, kind):
    headers = {"Content-Type": kind} if kind else {}
    for body in (b'{"a": NaN}', json.dumps({"model": HOSTILE}).encode(), b"[1]"):
        answer = client.post("/any/route", content=body, headers=headers)
        assert answer.status_code == 400
        assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_the_served_applications_have_them():
    fields, param = REFUSED["model"]
    for app in (covered.application(), Here(Fake()).app):
        async with covered.client(app) as http:
            answer = await http.post("/v1/completions", json={"prompt": "x", **fields})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
        assert "this server's limit" in answer.json()["error"]["message"]


def test_what_is_declared_otherwise_is_the_routes(client):
    headers = {"Content-Type": "text/plain"}
    assert client.post("/any", content=b"no JSON", headers=headers).status_code == 200


def test_a_body_beyond_the_contexts_is_not_read(client):
    answer = client.post("/any", content=b" " * (BOUNDS.body + 1))
    assert answer.status_code == 413


def test_a_path_has_a_length(client):
    assert client.get("/" + "%20" * 2000).status_code == 400
    assert client.get("/" + "a" * (sizes.PATH - 1)).status_code == 200
