"""The black-box base against a small fake upstream: text mode, both endpoints, every fault."""

import asyncio
import json
import logging
import subprocess
import sys
import time
from email.utils import formatdate

import httpx
import numpy as np
import pytest
import torch
import upstream_fake
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)
from upstream_fake import END, KEY, TOKENS, Fake, table

from trimtab.adapters.openai import client as upstream_client
from trimtab.errors import StartError, TrimtabError
from trimtab_models.demo import foreign
from trimtab_server import readiness, settings
from trimtab_server.upstream import build

TEXT = "Say it:"
CHAT = [{"role": "user", "content": "Hi"}]
GUIDED = {"scorers": {"good": 1.0}, "beta": 2.0, "k": 32, "mass": 0.99, "tail": "truncate"}
SCORERS = [
    "good=upstream_fake:likes_good,family=function,reads=text",
    "emoji=upstream_fake:likes_emoji,family=function,reads=text",
    "late=upstream_fake:fails_late,family=function,reads=text",
]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(upstream_client, "FIRST_WAIT", 0.001)


class Here:
    """Our application in this process, over a fake."""

    def __init__(self, fake, **options):
        options = {
            "upstream": "http://upstream/v1",
            "upstream_model": "m",
            "upstream_key": KEY,
            "upstream_end": ["<end>"],
            "scorer": SCORERS,
            **options,
        }
        self.app = build(settings.load(options), fake.transport())
        self.fake = fake
        self.http = httpx.AsyncClient(
            transport=httpx.ASGITransport(self.app, raise_app_exceptions=False),
            base_url="http://us",
        )

    async def post(self, path="/generate", **fields):
        return await self.http.post(path, json=fields)

    async def generate(self, **fields):
        answer = await self.post(**{"prompt": TEXT, **GUIDED, **fields})
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def stream(self, path="/generate", **fields):
        answer = await self.post(path, stream=True, **fields)
        assert answer.status_code == 200, answer.text
        events = [e.removeprefix("data: ") for e in answer.text.strip().split("\n\n")]
        assert events.pop() == "[DONE]"
        return [json.loads(event) for event in events]


@pytest.fixture
async def here():
    return Here(Fake())


def chat_here(fake=None, way="prefix", **options):
    return Here(fake or Fake(), upstream_api="chat", upstream_continue=way, **options)


def greedy_reference(prefix, beta, score, tokens, table=table):
    """The definition over the whole table: argmax of log p + β·s, until the end."""
    text, chosen = prefix.encode(), []
    while len(chosen) < tokens:
        p = table(text)
        order = sorted((t for t in range(len(p)) if p[t] > 0), key=lambda t: -p[t])
        before = np.cumsum([0, *(p[t] for t in order)])
        kept = [t for t, b in zip(order, before, strict=False) if b < 0.99]
        values = [
            np.log(p[t]) + beta * score((text + TOKENS[t]).decode(errors="replace")) for t in kept
        ]
        token = kept[int(np.argmax(values))] if len(kept) > 1 else kept[0]
        chosen.append(token)
        if token == END:
            break
        text += TOKENS[token]
    return chosen


def pieces(here, ids):
    known = here.app.state.trimtab.engine.naming.pieces.tokens
    return [TOKENS.index(known[i]) for i in ids]


async def test_greedy_is_the_definition_and_the_record_is_whole(here):
    answer = await here.generate(temperature=0, max_tokens=40, trace=True)
    (choice,) = answer["choices"]
    expected = greedy_reference(TEXT, 2.0, lambda text: text.count(" good"), 40)
    assert pieces(here, choice["token_ids"]) == expected
    record = choice["guidance"]
    assert record["kl"] > 0
    assert record["steps"] == len(choice["token_ids"])
    assert set(record["scores"]) == {"good"}
    assert record["unrevealed"] == pytest.approx(0, abs=1e-6)
    step = record["trace"][0]
    assert len(step["candidates"]) == len(step["texts"]) == len(step["logprobs"])
    assert answer["usage"]["completion_tokens"] == len(choice["token_ids"])
    decoder = here.app.state.trimtab.engine
    decoder.thread.submit(int).result()  # what is forgotten is forgotten there, afterwards
    assert decoder.naming.pieces.prompts == {}
    assert not decoder.guide.records


async def test_the_unrevealed_probability_is_reported(here):
    here.fake.top = 3
    answer = await here.generate(temperature=0, max_tokens=6, trace=True, mass=1.0, k=8)
    (choice,) = answer["choices"]
    record, text, hidden = choice["guidance"], TEXT.encode(), []
    for token, step in zip(pieces(here, choice["token_ids"]), record["trace"], strict=True):
        p = sorted(table(text), reverse=True)
        hidden.append(1 - sum(p[:3]))
        assert step["unrevealed"] == pytest.approx(hidden[-1], abs=1e-6)
        assert len(step["candidates"]) <= 3
        assert step["logprobs"] == pytest.approx(np.log(p[: len(step["logprobs"])]), abs=1e-4)
        text += TOKENS[token]
    assert record["unrevealed"] == pytest.approx(np.mean(hidden), abs=1e-6)


async def test_block_mode_is_one_token_mode_with_fewer_calls():
    for scorers in ({"good": 1.0}, {"emoji": 3.0}, {"good": -1.0}):
        request = {"temperature": 0, "max_tokens": 60, "scorers": scorers, "trace": True}
        one, block = Here(Fake()), Here(Fake(), upstream_block=8)
        first, second = [(await h.generate(**request))["choices"][0] for h in (one, block)]
        assert first["text"] == second["text"]
        assert first["guidance"]["kl"] == pytest.approx(second["guidance"]["kl"], abs=1e-5)
        assert len(block.fake.calls) < len(one.fake.calls)
    before = len(block.fake.calls)
    await block.generate(temperature=1, max_tokens=4)
    assert block.fake.calls[before]["max_tokens"] == 1  # a block is for greedy answers alone


@pytest.mark.parametrize("way", ["prefix", "continue_final_message"])
async def test_chat_goes_on_from_a_partial_answer(way):
    here = chat_here(way=way)
    answer = await here.post(messages=CHAT, temperature=0, max_tokens=12, **GUIDED)
    choice = answer.json()["choices"][0]
    expected = greedy_reference("ai", 2.0, lambda text: text.count(" good"), 12)
    assert pieces(here, choice["token_ids"])[:2] == expected[:2]
    first, second = here.fake.calls[0], here.fake.calls[-1]
    assert first["messages"] == CHAT
    assert "continue_final_message" not in first
    last = second["messages"][-1]
    assert last["role"] == "assistant"
    assert choice["text"].startswith(last["content"])
    assert last.get("prefix", False) == (way == "prefix")
    assert second.get("continue_final_message", False) == (way != "prefix")
    assert second.get("add_generation_prompt", True) == (way == "prefix")


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("temperature", [0, 1.3])
async def test_characters_in_pieces_stay_whole(chat, temperature):
    here = chat_here() if chat else Here(Fake())
    where = {"messages": CHAT} if chat else {"prompt": TEXT}
    request = {**where, "scorers": {"emoji": 4.0}, "beta": 2, "max_tokens": 40, "seed": 3, "n": 2}
    answer = await here.post(**request, temperature=temperature)
    assert answer.status_code == 200, answer.text
    texts = [choice["text"] for choice in answer.json()["choices"]]
    assert any("🙂" in text for text in texts)
    assert not any("\ufffd" in text for text in texts)
    for event in await here.stream(**request, temperature=temperature):
        assert all("\ufffd" not in choice["text"] for choice in event["choices"])


async def test_streaming_equals_whole(here):
    request = {"prompt": TEXT, **GUIDED, "n": 3, "seed": 5, "max_tokens": 30, "stop": [" it is"]}
    whole = (await here.post(**request)).json()
    here.fake.calls.clear()
    events = await here.stream(**request)
    for choice in whole["choices"]:
        mine = [c for e in events for c in e["choices"] if c["index"] == choice["index"]]
        assert "".join(c["text"] for c in mine) == choice["text"]
        assert [t for c in mine for t in c["token_ids"]] == choice["token_ids"]
        assert mine[-1]["finish_reason"] == choice["finish_reason"]
        assert mine[-1]["guidance"] == choice["guidance"]
        assert all("guidance" not in c for c in mine[:-1])
    assert events[-1]["usage"] == whole["usage"]


async def test_stop_strings_end_and_are_not_sent(here):
    plain = (await here.generate(temperature=0, max_tokens=40))["choices"][0]["text"]
    stop = plain[7:12]
    cut = (await here.generate(temperature=0, max_tokens=40, stop=[stop]))["choices"][0]
    assert cut["text"] == plain[: plain.index(stop)]
    assert cut["finish_reason"] == "stop"
    events = await here.stream(prompt=TEXT, temperature=0, max_tokens=40, stop=stop, **GUIDED)
    assert "".join(c["text"] for e in events for c in e["choices"]) == cut["text"]


@pytest.mark.parametrize("block", [1, 8])
async def test_an_end_that_is_not_sent_ends(block):
    here = Here(Fake(hidden_end=True), upstream_block=block, upstream_end=[])
    ended = 0
    for i in range(20):
        request = {"prompt": f"{i}:", "max_tokens": 30, "seed": i, "beta": 0.5}
        (choice,) = (await here.generate(**request, temperature=int(block == 1)))["choices"]
        ended += choice["finish_reason"] == "stop"
        assert "<end>" not in choice["text"]
        assert choice["guidance"]["steps"] == len(choice["token_ids"])
    assert ended > 0


async def test_openai_routes(here):
    request = {"model": "m", "prompt": [TEXT, "And:"], "n": 2, "seed": 1, "max_tokens": 5}
    base = (await here.post("/v1/completions", **request)).json()
    assert [c["index"] for c in base["choices"]] == [0, 1, 2, 3]
    assert all("guidance" not in c for c in base["choices"])
    guided = (await here.post("/v1/completions", **request, guidance=GUIDED)).json()
    assert [c["index"] for c in guided["choices"]] == [0, 1, 2, 3]
    assert all(c["guidance"]["steps"] > 0 for c in guided["choices"])
    assert guided["object"] == "text_completion"
    over = chat_here()
    request = {"messages": CHAT, "max_completion_tokens": 6, "temperature": 0, "guidance": GUIDED}
    whole = (await over.post("/v1/chat/completions", **request)).json()
    assert whole["object"] == "chat.completion"
    message = whole["choices"][0]["message"]
    options = {"include_usage": True}
    events = await over.stream("/v1/chat/completions", **request, stream_options=options)
    said = "".join(c["delta"]["content"] for e in events for c in e["choices"])
    assert message == {"role": "assistant", "content": said}
    assert events[-2]["choices"][0]["guidance"] == whole["choices"][0]["guidance"]
    assert events[-1]["usage"] == whole["usage"]
    zero = {**request, "guidance": {"beta": 0}}
    record = (await over.post("/v1/chat/completions", **zero)).json()["choices"][0]["guidance"]
    assert record["kl"] == 0
    assert "unrevealed" in record


async def test_status_routes(here):
    assert (await here.http.get("/health")).status_code == 200
    assert (await here.http.get("/ready")).status_code == 503
    await readiness.check_all(here.app.state.trimtab)
    assert (await here.http.get("/ready")).status_code == 200
    here.fake.faults = [httpx.Response(500)] * 4
    await here.post(prompt=TEXT, **GUIDED)
    assert (await here.http.get("/ready")).status_code == 503
    await here.post(prompt=TEXT, **GUIDED)
    assert (await here.http.get("/ready")).status_code == 200
    assert (await here.http.get("/v1/models")).json()["data"][0]["id"] == "m"
    listed = {s["id"]: s for s in (await here.http.get("/v1/scorers")).json()["data"]}
    assert set(listed) == {"good", "emoji", "late"}
    assert listed["good"]["healthy"]
    assert "trimtab_upstream_calls" in (await here.http.get("/metrics")).text
    assert (await here.http.get("/nowhere")).json()["error"]["type"] == "invalid_request_error"


async def nan(body):
    step = {" a": 0.0}
    logprobs = {"tokens": [" a"], "token_logprobs": [0.0], "top_logprobs": [step]}
    text = json.dumps(
        {"choices": [{"text": " a", "finish_reason": "length", "logprobs": logprobs}]}
    )
    return httpx.Response(200, text=text.replace("0.0", "NaN"))


FAULTS = {
    "limited": (httpx.Response(429, headers={"Retry-After": "0"}, text=KEY), 502),
    "failed": (httpx.Response(500, text=KEY), 502),
    "timeout": (httpx.ReadTimeout(KEY), 504),
    "truncated": (httpx.RemoteProtocolError(KEY), 502),
    "refused connection": (httpx.ConnectError(KEY), 502),
    "not JSON": (httpx.Response(200, text=f"<html>{KEY}"), 502),
    "NaN": (nan, 502),
    "no logprobs": (httpx.Response(200, json={"choices": [{"finish_reason": "length"}]}), 502),
    "another shape": (httpx.Response(200, json=[KEY]), 502),
}


@pytest.mark.parametrize("kind", FAULTS)
async def test_faults_are_retried_and_then_reported(kind, caplog):
    caplog.set_level(logging.DEBUG)
    fault, status = FAULTS[kind]
    here = Here(Fake())
    calm = await here.generate(temperature=0, max_tokens=6)
    here.fake.calls.clear()
    here.fake.faults = [fault] * 3
    assert (await here.generate(temperature=0, max_tokens=6))["choices"] == calm["choices"]
    here.fake.calls.clear()
    here.fake.faults = [fault] * 4
    answer = await here.post(prompt=TEXT, **GUIDED)
    assert len(here.fake.calls) == 4
    assert answer.status_code == status
    assert answer.json()["error"]["type"] == "upstream_error"
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    here.fake.faults = [fault] * 4
    again = await here.post(prompt=TEXT, stream=True, **GUIDED)
    assert again.status_code == status  # nothing was shown yet
    assert KEY not in answer.text + again.text + caplog.text
    assert here.fake.headers[0]["authorization"] == f"Bearer {KEY}"


async def test_a_fault_in_the_middle_of_a_stream_is_an_event(here):
    async def dies(body):
        here.fake.faults = [httpx.Response(500)] * 4
        return httpx.Response(200, json=here.fake.answer(body, False))

    here.fake.faults = [dies]
    events = await here.stream(prompt=TEXT, temperature=0, **GUIDED)
    assert len(events) == 2
    assert events[-1]["error"]["type"] == "upstream_error"


async def test_a_refusal_is_not_tried_again(here):
    here.fake.faults = [httpx.Response(401, text=KEY)] * 4
    answer = await here.post(prompt=TEXT, **GUIDED)
    assert answer.status_code == 502
    assert "401" in answer.json()["error"]["message"]
    assert len(here.fake.calls) == 1


async def test_a_slow_upstream_and_a_slow_answer_time_out():
    async def sleeps(body):
        await asyncio.sleep(5)

    here = Here(Fake(), upstream_timeout=0.05, upstream_retries=1)
    here.fake.faults = [sleeps] * 2
    assert (await here.post(prompt=TEXT, **GUIDED)).status_code == 504
    assert len(here.fake.calls) == 2
    here = Here(Fake(), upstream_deadline=0.1)
    here.fake.faults = [sleeps] * 2
    answer = await here.post(prompt=TEXT, **GUIDED)
    assert answer.status_code == 504
    assert "0.1 seconds" in answer.json()["error"]["message"]


async def test_retry_after_is_honoured_and_bounded(here, monkeypatch):
    waits = []

    async def sleep(seconds):
        waits.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)

    async def waited(*values):
        waits.clear()
        here.fake.faults = [httpx.Response(429, headers={"Retry-After": v}) for v in values]
        await here.generate(max_tokens=1)
        return list(waits)

    seconds, long, words = await waited("7", "100000", "soon")
    assert seconds == 7
    assert long == upstream_client.LONGEST_WAIT
    assert words < 1
    soon, late = (formatdate(time.time() + after, usegmt=True) for after in (20, 3600))
    date, late_date, broken_date = await waited(soon, late, soon.replace(":", ""))
    assert 15 < date <= 20
    assert late_date == upstream_client.LONGEST_WAIT
    assert broken_date < 1  # the control


SLOW = {
    "scorer": [
        *SCORERS,
        "exits=upstream_fake:exits_late,family=function,reads=text",
        "sleeps=upstream_fake:sleeps_late,family=function,reads=text",
        "loops=upstream_fake:loops_late,family=function,reads=text",
    ],
    "scorer_timeout": 0.5,
}


@pytest.mark.slow
@pytest.mark.parametrize("scorer", ["exits", "sleeps", "loops"])
async def test_whatever_a_scorer_does_the_server_goes_on(scorer):
    """The event loop goes on meanwhile, and the neighbour gets what it gets alone."""
    here = Here(Fake(), **SLOW)
    fields = {"prompt": 3 * TEXT, "temperature": 0, "max_tokens": 8}
    alone = await here.generate(**fields)
    await here.generate(prompt="Hi", max_tokens=1, scorers={scorer: 1.0})  # a first answer
    bad = asyncio.create_task(here.generate(**fields, scorers={scorer: 1.0}, on_error="unguided"))
    near = asyncio.create_task(here.generate(**fields))
    beats = 0
    while not (bad.done() and near.done()):
        await asyncio.sleep(0.01)
        beats += 1
    (choice,) = bad.result()["choices"]
    assert choice["guidance"]["error"]["scorer"] == scorer
    assert choice["guidance"]["error"]["overrun"] == (scorer != "exits")
    assert near.result()["choices"] == alone["choices"]
    if scorer == "sleeps":  # asleep, it holds nothing; a loop shares the interpreter until it ends
        assert beats > 10
    failed = await here.post(**fields, scorers={scorer: 1.0})
    assert failed.status_code == 500
    assert failed.json()["error"]["type"] == "scorer_error"


@pytest.mark.slow
async def test_three_overruns_take_the_server_out_of_service():
    here = Here(Fake(), **SLOW)
    await readiness.check_all(here.app.state.trimtab)
    assert (await here.http.get("/ready")).status_code == 200
    for n in range(3):
        request = {"prompt": 3 * TEXT, "scorers": {"loops": 1.0}, "max_tokens": 2}
        assert (await here.post(**request)).status_code == 500
        guide = here.app.state.trimtab.engine.guide
        status, limit = (
            guide.registry.calls.status(guide.registry.scorers["loops"]),
            time.monotonic() + 60,
        )
        while status.busy and time.monotonic() < limit:
            await asyncio.sleep(0.01)
        listed = (await here.http.get("/v1/scorers")).json()["data"]
        scorers = {one["id"]: one for one in listed}
        assert scorers["loops"]["overruns"] == n + 1
    assert scorers["loops"]["suspended"]
    assert not scorers["loops"]["healthy"]
    assert scorers["good"]["healthy"]
    answer = await here.http.get("/ready")
    assert answer.status_code == 503
    assert "'loops' is suspended" in answer.json()["error"]["message"]
    assert (await here.generate(max_tokens=2))["choices"]  # others go on
    request = {"prompt": "Hi", "scorers": {"loops": 1.0}, "max_tokens": 1}
    assert (await here.post(**request)).status_code == 500  # at once, although it would not loop


async def test_a_scorer_that_fails_ends_its_request(here):
    request = {"prompt": 3 * TEXT, "scorers": {"late": 1.0}, "temperature": 0, "max_tokens": 40}
    answer = await here.post(**request)
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "scorer_error"
    assert "secret" not in answer.text
    on = (await here.post(**request, on_error="unguided")).json()["choices"][0]
    assert on["guidance"]["error"]["scorer"] == "late"


@pytest.mark.parametrize(
    "fields",
    [
        {"min_tokens": 2},
        {"presence_penalty": 1.0},
        {"repetition_penalty": 1.2},
        {"logprobs": 2},
        {"search": {"method": "best_of_n"}},
        {"stop_token_ids": [1]},
        {"ignore_eos": True},
        {"prompt": None, "prompt_token_ids": [1]},
        {"prompt": None, "messages": CHAT},
        {"floors": {"good": 0.5}},
        {"ceilings": {"good": 0.5}},
        {"utility": {"good": {"target": 0.5}}},
        {"surprise": 1},
    ],
)
async def test_generate_refuses_what_it_cannot_do(here, fields):
    request = {"prompt": TEXT, "scorers": {"good": 1.0}, **fields}
    answer = await here.post(**{k: v for k, v in request.items() if v is not None})
    assert answer.status_code == 400, answer.text
    assert not here.fake.calls


@pytest.mark.parametrize(
    ("path", "fields", "status"),
    [
        ("/v1/completions", {"prompt": TEXT, "logit_bias": {"1": 5}}, 400),
        ("/v1/completions", {"prompt": TEXT, "logprobs": 5}, 400),
        ("/v1/completions", {"prompt": TEXT, "echo": True}, 400),
        ("/v1/completions", {"prompt": TEXT, "vllm_xargs": {"trimtab_beta": 1}}, 400),
        ("/v1/completions", {"prompt": TEXT, "n": 129}, 400),
        ("/v1/completions", {"prompt": TEXT, "n": 129, "guidance": None}, 400),
        ("/v1/completions", {"prompt": TEXT, "model": "other"}, 404),
        ("/v1/completions", {"prompt": TEXT, "model": "other", "guidance": None}, 404),
        ("/v1/completions", {"prompt": TEXT, "guidance": {"scorers": {"x": 1}}}, 404),
        ("/v1/completions", {}, 400),
        ("/v1/completions", {"prompt": []}, 400),
        ("/v1/chat/completions", {"messages": CHAT}, 400),
        ("/v1/chat/completions", {"messages": CHAT, "tools": [{"type": "function"}]}, 400),
    ],
)
async def test_openai_routes_refuse_what_they_cannot_steer(here, path, fields, status):
    answer = await here.post(path, **{"guidance": GUIDED, **fields})
    assert answer.status_code == status, answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert not here.fake.calls


async def test_a_chat_upstream_takes_messages_alone():
    here = chat_here()
    assert (await here.post(prompt=TEXT)).status_code == 400
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
    path, guided = "/v1/chat/completions", {"guidance": GUIDED}
    assert (await here.post(path, messages=image, **guided)).status_code == 400
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    answer = await here.post(path, messages=parts, max_tokens=2, **guided)
    assert answer.status_code == 200
    assert here.fake.calls[0]["messages"] == CHAT


@pytest.mark.parametrize(
    "options",
    [
        {"scorer": ["ids=upstream_fake:reads_ids,family=function"]},
        {"upstream_api": "chat"},
        {"upstream_model": None},
        {"model": "both"},
        {"upstream": "not-a-url"},
        {"scorer": []},
        {"tokenizer": "/nowhere/at-all"},
    ],
)
def test_what_cannot_serve_does_not_start(options):
    with pytest.raises(StartError):
        Here(Fake(), **options)


def test_a_scorer_of_token_ids_needs_a_tokenizer():
    with pytest.raises(TrimtabError, match="give --tokenizer"):
        Here(Fake(), scorer=["ids=upstream_fake:likes_good,family=function,reads=tokens"])


@pytest.mark.parametrize(("token", "status"), [("token_id:7", 200), (" good", 502)])
async def test_ids_are_distinguished_from_text(token, status):
    from trimtab_models import demo

    here = Here(Fake(), tokenizer=str(demo.base()), upstream_end=[], upstream_retries=0)
    top = {token: -0.1, "token_id:9": -3.0, "token_id:999999": -4.0}
    logprobs = {"tokens": [token], "token_logprobs": [-0.1], "top_logprobs": [top]}
    choice = {"text": "", "finish_reason": "length", "logprobs": logprobs}
    here.fake.faults = [httpx.Response(200, json={"choices": [choice]})]
    answer = await here.post(prompt=TEXT, max_tokens=1, temperature=0, trace=True, **GUIDED)
    assert answer.status_code == status, answer.text
    if status == 200:
        step = answer.json()["choices"][0]["guidance"]["trace"][0]
        assert step["candidates"] == [7, 9]
        assert step["unrevealed"] == pytest.approx(1 - np.exp(-0.1) - np.exp(-3.0))
    else:
        assert "--tokenizer" in answer.json()["error"]["message"]
    sent = here.fake.calls[0]
    assert sent["return_tokens_as_token_ids"]
    assert all(isinstance(one, int) for one in sent["prompt"])


async def test_keys_guard_all_but_health():
    here = Here(Fake(), api_key=["ours"])
    assert (await here.post(prompt=TEXT)).status_code == 401
    assert (await here.http.get("/metrics")).status_code == 401
    assert (await here.http.get("/health")).status_code == 200
    assert not here.fake.calls


async def test_a_client_that_leaves_costs_no_more_calls(here):
    received = asyncio.Event()

    async def slowly(body):
        received.set()
        await asyncio.sleep(0.02)
        return httpx.Response(200, json=here.fake.answer(body, False))

    here.fake.faults = [slowly] * 1000
    body = json.dumps({"prompt": TEXT, "max_tokens": 500, **GUIDED, "beta": 0}).encode()
    pending = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive():
        if pending:
            return pending.pop()
        await received.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        pass

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/generate", "headers": headers}
    await here.app({**scope, "query_string": b"", "root_path": ""}, receive, send)
    calls = len(here.fake.calls)
    await asyncio.sleep(0.1)
    assert len(here.fake.calls) == calls < 5


@pytest.mark.slow
def test_it_needs_no_vllm():
    code = (
        "import sys; sys.modules['vllm'] = None\n"
        "import trimtab_server.cli, trimtab_server.launcher, trimtab_server.upstream\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture(scope="module")
def foreign_scorers(tmp_path_factory):
    """Networks from chance, with strong opinions."""
    root = tmp_path_factory.mktemp("foreign")
    torch.manual_seed(0)
    for kind, make in (("roberta", foreign.roberta), ("pythia", foreign.pythia)):
        model, tokenizer = make()
        head = model.classifier.out_proj if kind == "roberta" else model.classifier
        torch.nn.init.normal_(head.weight)
        model.save_pretrained(root / kind)
        tokenizer.save_pretrained(root / kind)
    return {kind: root / kind for kind in ("roberta", "pythia")}


@pytest.mark.parametrize("kind", ["roberta", "pythia"])
async def test_text_mode_takes_scorers_with_tokenizers_of_their_own(
    kind, foreign_scorers, monkeypatch
):
    def whole(context):
        """Without half characters, which are followed only where the upstream itself does."""
        p = [*table(context)[:9], 0, 0, 0, table(context)[END]]
        return [x / sum(p) for x in p]

    monkeypatch.setattr(upstream_fake, "table", whole)
    path = foreign_scorers[kind]
    family = ",family=text,reads=text" if kind == "roberta" else ""
    here = Here(Fake(), scorer=[f"other={path}{family}"])
    load = AutoModelForSequenceClassification if family else AutoModelForTokenClassification
    model, tokenizer = load.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)

    def score(text):
        ids = tokenizer(text.removesuffix("<end>")).input_ids
        ids = ids if family else ids[:-1]  # a value of the prefix: the text has not ended
        with torch.inference_mode():
            return float(model(torch.tensor([ids])).logits[0, -1].ravel()[0])

    bare = {"scorers": {"other": 1.0}, "beta": 0.0}
    changed = 0
    for prompt in ("Say it:", "It is", "so very", "bad and", "A phone"):
        request = {"prompt": prompt, "temperature": 0, "max_tokens": 6}
        (choice,) = (await here.generate(**request, scorers={"other": 50.0}, beta=20.0))["choices"]
        ids = greedy_reference(prompt, 1e3, score, 6, whole)
        assert pieces(here, choice["token_ids"]) == ids
        changed += (await here.generate(**request, **bare))["choices"][0]["text"] != choice["text"]
    assert changed


@pytest.mark.parametrize("way", ["chat", "completions"])
async def test_odd_messages_are_refused_with_guidance(way):
    here = chat_here() if way == "chat" else Here(Fake())
    for messages in ([1], ["x"], [None], [[]], [{}], None, {}, 5, "x"):
        answer = await here.post("/v1/chat/completions", messages=messages, guidance=GUIDED)
        assert answer.status_code == 400, messages
        assert (await here.post(messages=messages)).status_code == 400
    for content in (
        ["text"],
        [1],
        [None],
        5,
        None,
        {"type": "text"},
        [{"type": "text", "text": 5}],
        [{"type": "text"}],
    ):
        turns = [{"role": "user", "content": content}]
        answer = await here.post("/v1/chat/completions", messages=turns, guidance=GUIDED)
        assert answer.status_code == 400, content
    assert not here.fake.calls
