"""Errors, whoever made them: our shape, bounded, nothing of the input, no path, no traceback."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse

from covered import application, client
from trimtab_server.refusals import FAILED, Failures, Plain
from trimtab_server.wording import LONGEST, plain

pytestmark = pytest.mark.scorecard(letter="B")

MARK = "zebra-crossing"
KEY = {"Authorization": "Bearer key"}
JSON = {"Content-Type": "application/json"}

UNCHANGED = [
    "This model's maximum context length is 512 tokens. However, you requested 16 output tokens "
    "and your prompt contains at least 497 input tokens, for a total of at least 513 tokens. "
    "Please reduce the length of the input prompt or the number of requested output tokens.",
    "temperature must be non-negative, got -1.0.",
    "top_p must be in (0, 1], got 1.5.",
    "max_tokens must be at least 1, got 0.",
    "Requested sample logprobs of 30, which is greater than max allowed: 20",
    "Token id 1048576 is out of vocabulary",
    "Stream options can only be defined when `stream=True`.",
    '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set',
    "You can only use one kind of constraints for structured outputs ('json' or 'regex').",
    "Conversation roles must alternate user/assistant/user/assistant/...",
    "Input should be greater than or equal to 0",
    "Input should be a valid list",
    "Field required",
]


@pytest.mark.parametrize("message", UNCHANGED)
def test_what_vllm_says_stays(message):
    assert plain(message) == message


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (f"The model `{MARK}` does not exist.", "The model `…` does not exist."),
        (f"Invalid grammar: {MARK} {MARK}/{MARK}!", "Invalid grammar: …!"),
        ("Unknown message type: <class 'a.b.Zebra'>", "Unknown message type: <… 'a.…'>"),
        ('File "/usr/lib/python/zebra.py", line 3', '… "/…", … 3'),
        ("token\r\n\tids\x00\x1b[31m", "token ids…[…"),
        (f"got {'9' * 40} and {'1,' * 4}2", "got … and 1,1,1,1,2"),
        ("got é, зебра, 斑马, 😀", "got …, …, …, …"),
    ],
)
def test_what_is_of_the_input_goes(message, expected):
    assert plain(message) == expected


@given(st.text())
def test_any_input(text):
    message = plain(f"The model `{text}` does not exist.")
    assert message.isascii() or set(filter(lambda c: not c.isascii(), message)) <= {"…", "’"}
    assert message.isprintable()
    assert len(message) <= LONGEST


def test_a_long_message_is_short_and_quick():
    for text in ("a" * 10**7, "a_" * 10**6, "é " * 10**6, "token " * 10**6, "\x00" * 10**6):
        began = time.perf_counter()
        assert len(plain(text)) <= LONGEST
        assert time.perf_counter() - began < 1


def post(app, path="/v1/completions"):
    return client(app).post(path, json={})


ANSWERS = {
    "error": (JSONResponse({"error": {"message": MARK, "type": MARK, "param": MARK}}, 404), 404),
    "large": (JSONResponse({"error": {"message": MARK * 10**5, "code": 400}}, 400), 400),
    "detail": (JSONResponse({"detail": [{"input": MARK, "loc": [MARK]}]}, 422), 422),
    "text": (PlainTextResponse(MARK, 400), 400),
    "nothing": (PlainTextResponse("", 405, {"Allow": "GET"}), 405),
    "list": (JSONResponse([MARK], 400), 400),
    "internal": (JSONResponse({"error": {"message": f"KeyError: {MARK}"}}, 500), 500),
}


@pytest.mark.parametrize("name", ANSWERS)
async def test_whole_errors(name):
    inner, status = ANSWERS[name]
    answer = await post(Plain(inner))
    assert answer.status_code == status
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert MARK not in answer.text
    assert len(answer.text) < 2000
    assert answer.headers["Content-Length"] == str(len(answer.content))
    assert answer.headers.get("Allow") == inner.headers.get("Allow")
    if name not in ("nothing",):
        assert MARK in (await post(inner)).text, "the control echoes"


async def test_what_is_no_error_is_untouched():
    inner = JSONResponse({"error": None, "choices": [{"text": MARK}]})
    assert (await post(Plain(inner))).json()["choices"][0]["text"] == MARK


async def test_the_shape_is_the_routes():
    inner = JSONResponse({"type": "error", "error": {"type": "x", "message": MARK}}, 400)
    body = (await post(Plain(inner), "/v1/messages")).json()
    assert body["type"] == "error"
    assert set(body["error"]) == {"type", "message"}


def stream(*events):
    async def chunks():
        for event in events:
            yield event

    return StreamingResponse(chunks(), media_type="text/event-stream")


def data(value, name=None):
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(value)}\n\n"


async def test_errors_in_streams():
    text = data({"choices": [{"text": f'"error": {MARK}'}], "error": None})
    failed = data(
        {"error": {"message": f"failed on {MARK}", "type": "x", "param": None, "code": 400}}
    )
    broken = data({"error": {"message": MARK * 10**5, "code": 500}})
    named = data({"type": "response.failed", "response": {"error": {"message": MARK}}}, "failed")
    made = stream(text, failed, broken + named, "data: [DONE]\n\n")
    lines = (await post(Plain(made))).text.split("\n\n")
    assert lines[0] + "\n\n" == text
    first, second = (json.loads(line.removeprefix("data: "))["error"] for line in lines[1:3])
    assert first["message"] == "failed on …"
    assert first["type"] == "invalid_request_error"
    assert second["message"] == FAILED
    assert lines[3].startswith("event: failed\n")
    assert MARK not in "".join(lines[1:])
    assert lines[4:] == ["data: [DONE]", ""]


async def test_what_nobody_catches(caplog):
    async def fails(scope, receive, send):
        raise KeyError(MARK)

    answer = await post(Failures(fails))
    assert answer.status_code == 500
    assert answer.json()["error"]["message"] == FAILED
    assert [record.getMessage() for record in caplog.records] == ["a request failed"]
    assert caplog.records[0].exc_info is not None  # trimtab.logs leaves its text out

    async def left(scope, receive, send):
        raise ClientDisconnect

    caplog.clear()
    with pytest.raises(AssertionError):  # of the test's client: there is no answer
        await post(Failures(left))
    assert not caplog.records


BAD = {
    "wrong types": ("/v1/completions", {"prompt": {MARK: MARK}, "max_tokens": MARK, "n": [MARK]}),
    "many wrong": ("/v1/chat/completions", {"messages": [{MARK: MARK}] * 300}),
    "wrong choice": ("/v1/chat/completions", {"messages": [], "tool_choice": MARK, "tools": []}),
    "wrong format": ("/v1/completions", {"prompt": "x", "response_format": {"type": MARK}}),
    "tokenize": ("/tokenize", {"prompt": [MARK, 5.5], "messages": MARK}),
    "detokenize": ("/detokenize", {"tokens": [MARK]}),
    "messages": ("/v1/messages", {"messages": MARK, "max_tokens": MARK}),
    "responses": ("/v1/responses", {"input": [{"type": MARK}], "tools": [MARK]}),
    "systemone": ("/v1/systemone", {"questions": [MARK]}),
    "not found": (f"/v1/{MARK}", {}),
    "wrong method": ("/v1/models", {MARK: 1}),
    "too deep": ("/tokenize", {"prompt": [[[[MARK]]]]}),
}


@pytest.fixture(scope="module")
def whole():
    return application(api_key=["key"])


@pytest.mark.parametrize("name", BAD)
async def test_vllms_own_routes(whole, name):
    path, body = BAD[name]
    answer = await client(whole).post(path, json=body, headers=KEY)
    assert 400 <= answer.status_code < 500, answer.text
    error = answer.json()["error"]
    assert error["message"]
    assert MARK not in answer.text
    assert "site-packages" not in answer.text
    assert len(answer.text) < 2000


@pytest.mark.parametrize("path", ["/v1/completions", "/tokenize", "/generate"])
@pytest.mark.parametrize("body", [b"{" + MARK.encode(), b"\xff", b'"' + MARK.encode(), b"[1]"])
async def test_bodies_that_are_no_object(whole, path, body):
    answer = await client(whole).post(path, content=body, headers=KEY | JSON)
    assert answer.status_code == 400
    assert MARK not in answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_other_media_types(whole):
    for path in ("/v1/completions", "/tokenize", "/generate"):
        answer = await client(whole).post(path, content=MARK, headers=KEY)
        assert answer.status_code in (400, 415)
        assert MARK not in answer.text


async def test_vllm_alone_echoes():
    """The control of all of the above: the same without our middleware and handler."""
    bare = application()
    from vllm.entrypoints.serve.exception_handling.register import init_exception_handler

    bare.user_middleware = []
    init_exception_handler(bare)
    answer = await client(bare).post("/v1/completions", json=BAD["wrong types"][1])
    assert answer.status_code == 400
    assert MARK in answer.text
