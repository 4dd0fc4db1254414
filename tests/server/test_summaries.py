"""Records where stock clients keep them: a header, and `usage.guidance`; without an engine."""

import json

import httpx
import pytest
from upstream_fake import Fake

from covered import quietly
from test_upstream import CHAT, GUIDED, Here, chat_here
from trimtab.engine import Version
from trimtab_server import summaries
from trimtab_server.browsers import READABLE

middleware = quietly("trimtab_server.vllm.middleware")
records = quietly("trimtab_server.vllm.records")

A = {"kl": 1.5, "kl_tail": 0.25, "scores": {"warm": 0.5}, "steps": 3, "error": None}
B = {"kl": 0.5, "kl_tail": 0.0, "scores": {"warm": 1.5, "é": -1.0}, "steps": 2, "error": None}
TRACE = [{"position": i, "candidates": [1, 2]} for i in range(500)]
SUM = {
    "guidance": {"kl": 2.0, "steps": 5, "scores": {"warm": 1.0, "é": -1.0}},
    "guidance_steps": 5,
    "guidance_kl_millinats": 2000,
}
USAGE = {"total_tokens": 7}


def test_the_header_is_the_record_of_one_choice():
    text = summaries.header([{**A, "trace": TRACE}])
    assert json.loads(text) == A
    assert " " not in text
    assert summaries.header([B]).isascii()
    assert json.loads(summaries.header([B])) == B
    for none in ([], [None], [A, B], [A, None]):
        assert summaries.header(none) is None


def test_the_header_is_bounded():
    for long in (
        {"scores": {f"scorer-{i}": 0.123456789 for i in range(100)}},
        {"error": {"scorer": "s", "message": "é" * 1000}},
    ):
        text = summaries.header([{**A, **long}])
        assert len(text) <= summaries.HEADER_BYTES
        assert json.loads(text) == {"kl": 1.5, "kl_tail": 0.25, "steps": 3, "cut": True}
    fits = {"scores": {f"scorer-{i}": 0.5 for i in range(50)}}
    assert json.loads(summaries.header([{**A, **fits}])) == {**A, **fits}  # the control


def test_usage_sums_the_choices():
    assert summaries.usage([A, None, B]) == SUM
    assert all(type(SUM[name]) is type(summaries.usage([A, B])[name]) for name in SUM)
    assert summaries.usage([{**A, "kl": 0.0016}])["guidance_kl_millinats"] == 2
    nothing = summaries.usage([{"kl": 0, "steps": 0, "scores": {"warm": 1}}])["guidance"]
    assert json.dumps(nothing) == '{"kl": 0.0, "steps": 0, "scores": {"warm": 1.0}}'
    assert summaries.usage([None]) == summaries.usage([]) == {}
    for answer in ({"usage": dict(USAGE)}, {"response": {"usage": dict(USAGE)}}):
        summaries.add_usage(answer, [A, B])
        assert answer.get("response", answer)["usage"] == {**USAGE, **SUM}
        summaries.add_usage(answer, [None])  # no record: no change
        assert answer.get("response", answer)["usage"] == {**USAGE, **SUM}
    for answer in ({}, {"usage": None}, {"response": None}):
        before = dict(answer)
        summaries.add_usage(answer, [A])
        assert answer == before


async def through(path, known, body, kind="application/json", guided=True):
    """What a client gets of an answer of vLLM's, through the middleware."""

    async def route(scope, receive, send):
        if guided:
            records.EXCHANGE.get().calls.append(dict(enumerate(known)))
        head = [(b"content-type", kind.encode())]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": body.encode()})

    served = {"warm": Version("warm", 1, "function")}
    app = middleware.GuidanceMiddleware(route, served, None)
    fields = {"n": len(known) or 1, **({"guidance": {}} if guided else {})}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://us") as http:
        return await http.post(path, json=fields)


def events(*all_of_them):
    return "".join(f"data: {json.dumps(one)}\n\n" for one in all_of_them) + "data: [DONE]\n\n"


def read(answer):
    lines = answer.text.split("\n\n")[:-2]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def choice(index):
    return {"index": index, "finish_reason": "stop"}


async def test_an_answer_of_one_choice_has_both():
    body = json.dumps({"choices": [choice(0)], "usage": USAGE})
    answer = await through("/v1/chat/completions", [A], body)
    assert json.loads(answer.headers["Trimtab-Guidance"]) == A
    assert answer.json()["usage"]["guidance"] == {k: A[k] for k in ("kl", "steps", "scores")}
    assert answer.json()["choices"][0]["guidance"] == A
    body = json.dumps({"choices": [choice(0), choice(1)], "usage": USAGE})
    answer = await through("/v1/chat/completions", [A, B], body)
    assert "Trimtab-Guidance" not in answer.headers
    assert answer.json()["usage"] == {**USAGE, **SUM}


async def test_without_guidance_there_is_neither():
    body = json.dumps({"choices": [choice(0)], "usage": USAGE})
    answer = await through("/v1/chat/completions", [], body, guided=False)
    assert "Trimtab-Guidance" not in answer.headers
    assert answer.text == body


async def test_a_stream_has_it_in_its_last_event():
    first, last = {"choices": [choice(0)]}, {"choices": [], "usage": USAGE}
    kind = "text/event-stream"
    answer = await through("/v1/chat/completions", [A], events(first, last), kind)
    assert "Trimtab-Guidance" not in answer.headers
    assert read(answer)[1]["usage"]["guidance"]["kl"] == 1.5
    for path, event in (
        ("/v1/responses", {"type": "response.completed", "response": {"usage": USAGE}}),
        ("/v1/messages", {"type": "message_delta", "usage": USAGE}),
    ):
        got = read(await through(path, [A], events(event), kind))[0]
        assert got["guidance"] == [A]
        assert got.get("response", got)["usage"]["guidance"]["steps"] == 3


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
async def test_routes_without_choices_have_both(path):
    answer = await through(path, [A], json.dumps({"usage": USAGE}))
    assert json.loads(answer.headers["Trimtab-Guidance"]) == A
    assert answer.json()["usage"]["guidance"]["scores"] == {"warm": 0.5}


async def test_over_an_upstream_too():
    here = Here(Fake())
    for path, fields in (
        ("/generate", {"prompt": "It", **GUIDED}),
        ("/v1/completions", {"prompt": "It", "guidance": GUIDED}),
    ):
        answer = await here.post(path, max_tokens=3, temperature=0, **fields)
        record = answer.json()["choices"][0]["guidance"]
        assert json.loads(answer.headers["Trimtab-Guidance"]) == record
    assert answer.json()["usage"]["guidance"]["kl"] == record["kl"]
    several = await here.post(path, max_tokens=3, n=2, **fields)
    assert "Trimtab-Guidance" not in several.headers
    assert several.json()["usage"]["guidance"]["steps"] > 0
    chat = {"messages": CHAT, "max_tokens": 3, "guidance": GUIDED}
    stream = await chat_here().stream(
        "/v1/chat/completions", **chat, stream_options={"include_usage": True}
    )
    assert stream[-1]["usage"]["guidance"]["steps"] == stream[-2]["choices"][0]["guidance"]["steps"]


def test_a_page_may_read_the_header():
    assert summaries.HEADER in READABLE
