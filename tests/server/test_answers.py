"""Records are written into server-sent events, wherever these are cut, whatever text they hold."""

import json

import pytest

from covered import quietly
from growth import LINEAR, exponent

middleware = quietly("trimtab_server.vllm.middleware")
RECORD = {"kl": 1.0, "steps": 3}
TEXTS = ["plain", "data: {", '\n\ndata: {"a": 1}\n\n', "data: [DONE]", "é🙂 \u2028", ""]


async def written(events, size):
    """What is sent of some events that come in pieces of `size` bytes."""
    sent = []

    async def send(message):
        sent.append(message)

    answer = middleware._GuidedAnswer(send, middleware.Exchange(calls=[{0: RECORD}]), 1)
    headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
    await answer.send({"type": "http.response.start", "status": 200, "headers": headers})
    for at in range(0, len(events), size):
        piece = {"type": "http.response.body", "body": events[at : at + size], "more_body": True}
        await answer.send(piece)
    await answer.send({"type": "http.response.body", "body": b"", "more_body": False})
    return b"".join(message.get("body", b"") for message in sent[1:])


def stream(*texts):
    chunks = [{"choices": [{"index": 0, "text": text, "finish_reason": None}]} for text in texts]
    chunks[-1]["choices"][0]["finish_reason"] = "stop"
    events = [f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n" for chunk in chunks]
    return ("".join(events) + "data: [DONE]\n\n").encode()


@pytest.mark.parametrize("size", [1, 7, 64, 10**6])
async def test_events_are_separated_wherever_they_are_cut(size):
    got = await written(stream(*TEXTS), size)
    *events, done = got.decode().removesuffix("\n\n").split("\n\n")
    assert done == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: "))["choices"][0] for event in events]
    assert [chunk["text"] for chunk in chunks] == TEXTS
    assert chunks[-1]["guidance"] == RECORD
    assert not any("guidance" in chunk for chunk in chunks[:-1])


async def test_names_of_events_stay():
    event = b'event: message_delta\ndata: {"type": "message_delta", "delta": {}}\n\n'
    got = await written(event, 1000)
    assert got.startswith(b"event: message_delta\ndata: {")
    assert json.loads(got.partition(b"data: ")[2])["guidance"] == [RECORD]


def run(coroutine):
    """The end of a coroutine that waits for nothing."""
    with pytest.raises(StopIteration):
        coroutine.send(None)


def test_time_grows_with_the_length_of_an_event():
    events = {size: stream("x" * size) for size in (2**15, 2**19)}
    assert exponent(lambda size: run(written(events[size], 64)), 2**15) < LINEAR


@pytest.mark.slow
def test_a_buffer_that_is_split_anew_would_be_noticed():
    """The control: what joined and split all that had come, with every piece."""

    def joined(size):
        buffer = b""
        for _ in range(size // 64):
            *_, buffer = (buffer + b"x" * 64).split(b"\n\n")

    assert exponent(joined, 2**14) > LINEAR
