"""What a hostile or broken upstream sends: too much, packed, endless, numbers beyond a float."""

import asyncio
import gzip
import json
import math

import httpx
import pytest
from upstream_fake import Fake

from test_upstream import GUIDED, TEXT, Here, no_waiting
from trimtab.adapters.openai import token_texts
from trimtab.adapters.openai.client import ANSWER_BYTES, UnusableAnswer
from trimtab.adapters.openai.positions import read_completion

pytestmark = pytest.mark.scorecard(letter="F")

__all__ = ["no_waiting"]  # a fixture
MB = 2**20


class Stream(httpx.AsyncByteStream):
    """Chunks, counted as they are read."""

    def __init__(self, chunks):
        self.chunks = chunks
        self.read = 0

    async def __aiter__(self):
        for chunk in self.chunks:
            self.read += len(chunk)
            yield chunk


def answering(stream, **headers):
    async def fault(body):
        return httpx.Response(200, headers=headers, stream=stream)

    return fault


async def refused(fault, status=502, **options):
    here = Here(Fake(), upstream_retries=0, **options)
    here.fake.faults = [fault]
    answer = await here.post(prompt=TEXT, **GUIDED)
    assert answer.status_code == status
    assert answer.json()["error"]["type"] == "upstream_error"
    here.fake.faults = []
    assert (await here.post(prompt=TEXT, **GUIDED)).status_code == 200
    return answer.json()["error"]["message"]


async def test_a_large_body_is_left_where_it_is():
    stream = Stream(b" " * MB for _ in range(600))
    assert "bytes" in await refused(answering(stream))
    assert stream.read < 8 * MB


def bomb(size):
    packed = gzip.compress(b" " * size)
    assert len(packed) < size / 500
    return packed


async def test_a_bomb_is_not_unpacked():
    packed = bomb(64 * MB)
    assert len(packed) < ANSWER_BYTES
    message = await refused(answering(Stream([packed]), **{"content-encoding": "gzip"}))
    assert "bytes" in message


async def test_httpx_alone_unpacks_a_bomb():
    """The control."""
    packed = bomb(8 * MB)
    http = httpx.AsyncClient(
        transport=httpx.MockTransport(answering(Stream([packed]), **{"content-encoding": "gzip"}))
    )
    assert len((await http.get("http://here")).content) == 8 * MB


@pytest.mark.parametrize("packed", ["br", "zstd", "gzip, gzip", "zebra"])
async def test_a_packing_that_was_not_accepted_is_not_unpacked(packed):
    await refused(answering(Stream([b"{}"]), **{"content-encoding": packed}))


async def test_what_is_no_gzip_is_unusable():
    await refused(answering(Stream([b"{}"]), **{"content-encoding": "gzip"}))


async def test_a_packed_answer_is_read():
    here = Here(Fake())
    calm = await here.generate(temperature=0, max_tokens=1)

    async def packed(body):
        content = json.dumps(here.fake.answer(body, False)).encode()
        stream = Stream([gzip.compress(content)])
        return httpx.Response(200, headers={"content-encoding": "gzip"}, stream=stream)

    here.fake.faults = [packed]
    assert (await here.generate(temperature=0, max_tokens=1))["choices"] == calm["choices"]


async def test_an_endless_answer_ends_with_the_time_of_its_call():
    async def endless(body):
        async def chunks():
            while True:
                await asyncio.sleep(0.01)
                yield b" "

        return httpx.Response(200, content=chunks())

    await refused(endless, status=504, upstream_timeout=0.3)


def completion_with(value):
    logprobs = {"tokens": [" a"], "token_logprobs": [-1.0], "top_logprobs": [{" a": "VALUE"}]}
    choice = {"text": " a", "finish_reason": "length", "logprobs": logprobs}
    return json.dumps({"choices": [choice]}).replace('"VALUE"', value)


@pytest.mark.parametrize(
    "value",
    ["-1" + "0" * 400, "-1" + "0" * 5000, "-1e400", "NaN", "-Infinity", "1" * 300, "[" * 900],
    ids=lambda value: value[:12],
)
async def test_numbers_beyond_a_float_are_unusable(value):
    await refused(answering(Stream([completion_with(value).encode()])))


@pytest.mark.parametrize("value", [-(10**400), 10**400, math.nan])
def test_numbers_beyond_a_float_never_raise_another_error(value):
    data = json.loads(completion_with("0"))
    data["choices"][0]["logprobs"]["top_logprobs"] = [{" a": value}]
    with pytest.raises(UnusableAnswer):
        read_completion(data, 5, lambda token, logprobs: 1)


async def test_bytes_that_are_a_number_are_not_made():
    here = Here(Fake(), upstream_api="chat", upstream_continue="prefix", upstream_retries=0)
    step = {"token": "a", "bytes": 2**33, "logprob": -0.1}
    choice = {
        "finish_reason": "length",
        "logprobs": {"content": [{**step, "top_logprobs": [step]}]},
    }
    here.fake.faults = [httpx.Response(200, json={"choices": [choice]})]
    answer = await here.post(messages=[{"role": "user", "content": "Hi"}], **GUIDED)
    assert answer.status_code == 502


async def test_ever_new_tokens_fill_no_memory(monkeypatch):
    monkeypatch.setattr(token_texts, "MAX_PIECES", 30)
    here = Here(Fake(), upstream_retries=0)
    await here.generate(temperature=0, max_tokens=4)
    pieces = here.app.state.trimtab.engine.naming.pieces

    async def fresh(body):
        top = {f" t{i}": -7.0 for i in range(50)} | {"x" * 5000: -7.0}
        logprobs = {"tokens": [" t0"], "token_logprobs": [-7.0], "top_logprobs": [top]}
        choice = {"text": " t0", "finish_reason": "length", "logprobs": logprobs}
        return httpx.Response(200, json={"choices": [choice]})

    here.fake.faults = [fresh] * 3
    await here.post(prompt=TEXT, **GUIDED)
    assert len(pieces.tokens) == 30
    assert max(map(len, pieces.tokens)) < 1024
