"""Bad bodies: a 4xx in OpenAI's shape, quickly, never echoed; the next good request unchanged."""

import json
import time

import pytest

pytestmark = pytest.mark.scorecard(letter="B")

GOOD = {"prompt": "The room was", "temperature": 0, "max_tokens": 12, "beta": 2}
SECONDS = 0.25
MARK = "zebra-crossing"

FIELDS = {
    # guidance
    "beta NaN": {"beta": float("nan")},
    "beta Infinity": {"beta": float("inf")},
    "beta -Infinity": {"beta": float("-inf")},
    "beta 1e308": {"beta": 1e308},
    "beta text": {"beta": MARK},
    "beta quoted": {"beta": "0.5"},
    "beta true": {"beta": True},
    "beta null": {"beta": None},
    "beta list": {"beta": []},
    "kl_budget and beta": {"kl_budget": 1, "beta": 2},
    "kl_budget below 0": {"kl_budget": -1},
    "kl_budget text": {"kl_budget": MARK},
    "floors unknown": {"floors": {MARK: 1}},
    "floors list": {"floors": ["sentiment"]},
    "floors without distributions": {"floors": {"sentiment": 0.5}},
    "ceilings unknown": {"ceilings": {MARK: 1}},
    "ceilings text": {"ceilings": {"sentiment": MARK}},
    "ceilings without distributions": {"ceilings": {"sentiment": 0.5}},
    "utility unknown": {"utility": {"sentiment": MARK}},
    "utility of nobody": {"utility": {MARK: "mean"}},
    "utility list": {"utility": [MARK]},
    "utility kind": {"utility": {"sentiment": {MARK: 1}}},
    "utility number": {"utility": {"sentiment": {"target": MARK}}},
    "utility huge": {"utility": {"sentiment": {"target": 1e308}}},
    "utility share": {"utility": {"sentiment": {"cvar": 0}}},
    "utility without distributions": {"utility": {"sentiment": {"target": 0.5}}},
    "principles text": {"principles": MARK},
    "principles without a weight": {"principles": [{"text": MARK}]},
    "principles weight text": {"principles": [{"text": MARK, "weight": MARK}]},
    "principles many": {"principles": [{"text": MARK, "weight": 1}] * 9},
    "principles long": {"principles": [{"text": MARK * 100, "weight": 1}]},
    "negative_prompt number": {"negative_prompt": 5},
    "negative_prompt empty": {"negative_prompt": ""},
    "caution unknown": {"caution": {MARK: 1}},
    "caution list": {"caution": ["sentiment"]},
    "caution below 0": {"caution": {"sentiment": -1}},
    "caution without an ensemble": {"caution": {"sentiment": 1}},
    "k 0": {"k": 0},
    "k -1": {"k": -1},
    "k 1.5": {"k": 1.5},
    "k quoted": {"k": "5"},
    "k huge": {"k": 2**63},
    "k above the cap": {"k": 2001},
    "mass 0": {"mass": 0},
    "mass above 1": {"mass": 1.01},
    "tail unknown": {"tail": MARK},
    "normalize number": {"normalize": 1},
    "on_error unknown": {"on_error": MARK},
    "scorers unknown": {"scorers": {MARK: 1}},
    "scorers list": {"scorers": ["sentiment"]},
    "scorers empty": {"scorers": {}},
    "scorers empty name": {"scorers": {"": 1}},
    "scorers path": {"scorers": {"../" + MARK: 1}},
    "scorers NUL": {"scorers": {"sentiment\0" + MARK: 1}},
    "scorers long name": {"scorers": {"a" * 10_000: 1}},
    "scorers many": {"scorers": {f"s{i}": 1 for i in range(10_000)}},
    "scorers weight text": {"scorers": {"sentiment": MARK}},
    "scorers weight huge": {"scorers": {"sentiment": 1e30}},
    "unknown field": {MARK: 1},
}
OBJECTS = {"a list": [], "text": "strong", "a number": 5, "many texts": [MARK] * 100}
REQUEST = {
    "two prompts": {"messages": [{"role": "user", "content": MARK}]},
    "prompt empty": {"prompt": ""},
    "prompt null": {"prompt": None},
    "prompt number": {"prompt": 5},
    "prompt too long": {"prompt": (MARK + " ") * 3000},
    "ids out of range": {"prompt": None, "prompt_token_ids": [1, 10**6]},
    "ids negative": {"prompt": None, "prompt_token_ids": [-1]},
    "ids empty": {"prompt": None, "prompt_token_ids": []},
    "ids 10⁵ wrong ones": {"prompt": None, "prompt_token_ids": [MARK] * 100_000},
    "messages empty": {"prompt": None, "messages": []},
    "messages image": {"prompt": None, "messages": [{"role": "user", "content": [{"type": "x"}]}]},
    "n 0": {"n": 0},
    "n huge": {"n": 10**9},
    "max_tokens 0": {"max_tokens": 0},
    "max_tokens -1": {"max_tokens": -1},
    "max_tokens huge": {"max_tokens": 10**9},
    "temperature NaN": {"temperature": float("nan")},
    "temperature -1": {"temperature": -1},
    "stop empty": {"stop": ""},
    "stop many": {"stop": ["x"] * 100_000},
    "top_p 0": {"top_p": 0},
    "logprobs above the cap": {"logprobs": 21},
    "stop_token_ids out of range": {"stop_token_ids": [2**40]},
    "seed text": {"seed": MARK},
}
RAW = {
    "empty": b"",
    "not JSON": b"{" + MARK.encode(),
    "list": b"[]",
    "trailing bytes": b'{"prompt": "x"} ' + MARK.encode(),
    "invalid UTF-8": b'{"prompt": "\xff\xfe"}',
    "UTF-16": '{"prompt": "x"}'.encode("utf-16"),
    "lone surrogate": b'{"prompt": "\\ud800"}',
    "lone surrogate as a name": b'{"prompt": "x", "scorers": {"\\udc00": 1}}',
    "duplicate keys": b'{"prompt": "x", "beta": 1, "beta": 2}',
    "scorers 10⁶": json.dumps(
        {"prompt": "x", "scorers": {f"s{i}": 1 for i in range(10**6)}}
    ).encode(),
    "duplicate scorers": b'{"prompt": "x", "scorers": {"sentiment": 1, "sentiment": 2}}',
    "beta 1e999": b'{"prompt": "x", "beta": 1e999, "guidance": {"beta": 1e999}}',
    "depth 500": b'{"prompt": ' + b"[" * 500 + b"]" * 500 + b"}",
    "depth 10⁵": b'{"prompt": ' + b"[" * 100_000,
    "5,000 digits": b'{"prompt": "x", "k": ' + b"9" * 5000 + b"}",
}


def refused(server, body, path="/generate", kind="application/json"):
    began = time.perf_counter()
    answer = server.http.post(path, content=body, headers={"Content-Type": kind})
    took = time.perf_counter() - began
    assert 400 <= answer.status_code < 500, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert len(answer.text) < 2000
    assert MARK not in answer.text
    assert "Traceback" not in answer.text
    assert took < SECONDS, f"took {took:.3f} s"
    return answer


@pytest.fixture(scope="module")
def before(server):
    """A good answer, and the engine that gave it."""
    return server.generate(**GOOD)["choices"][0], server.engine().pid


@pytest.fixture
def unchanged(server, before):
    """The next good request is as before, in the same engine."""
    yield
    after, (good, engine) = server.generate(**GOOD)["choices"][0], before
    assert (after["text"], after["token_ids"]) == (good["text"], good["token_ids"])
    assert server.engine().pid == engine


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("name", FIELDS)
def test_guidance_fields_of_generate(server, name):
    refused(server, json.dumps({**GOOD, **FIELDS[name]}).encode())


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("name", [*FIELDS, *OBJECTS])
def test_guidance_object_of_the_chat_route(server, name):
    chat = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
    guidance = (FIELDS | OBJECTS)[name]
    refused(server, json.dumps({**chat, "guidance": guidance}).encode(), "/v1/chat/completions")


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("name", REQUEST)
def test_request_fields(server, name):
    body = {**GOOD, **REQUEST[name]}
    refused(server, json.dumps({k: v for k, v in body.items() if v is not None}).encode())


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("name", RAW)
@pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
def test_raw_bodies(server, path, name):
    refused(server, RAW[name], path)


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    "fields",
    [{"n": 9}, {"n": 10**9}, {"stop": ["a"] * 5}, {"prompt": ["x"] * 10_000}],
    ids=["n 9", "n huge", "stop many", "prompts many"],
)
def test_caps_of_the_openai_routes(server, fields):
    base = {"prompt": "x", "max_tokens": 2, "guidance": {}}
    refused(server, json.dumps({**base, **fields}).encode(), "/v1/completions")


def test_media_type_and_size(server):
    text = refused(server, json.dumps(GOOD).encode(), kind="text/plain")
    assert text.status_code == 415
    large = server.http.post("/generate", content=b" " * (64 * 2**20))
    assert large.status_code == 413
    assert large.json()["error"]["type"] == "request_too_large"


def test_a_floor_needs_distributions(server):
    """The demo's scorers have none, which is refused before the engine is called."""
    body = {key: value for key, value in GOOD.items() if key != "beta"}
    answer = refused(server, json.dumps({**body, "floors": {"sentiment": 0.5}}).encode())
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "floors"
    assert "family 'distribution'" in answer.json()["error"]["message"]


def test_a_budget_needs_none(server):
    body = {key: value for key, value in GOOD.items() if key != "beta"}
    [choice] = server.generate(**body, scorers={"sentiment": 1.0}, kl_budget=1.0)["choices"]
    assert 0 < choice["guidance"]["kl"] < 4


def test_unknown_scorer_is_not_found(server):
    answer = refused(server, json.dumps({**GOOD, "scorers": {"unheard-of": 1}}).encode())
    assert answer.status_code == 404
    assert "sentiment" in answer.json()["error"]["message"]
