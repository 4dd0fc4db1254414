"""POST /generate on the real engine."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from httpx_sse import connect_sse

REVIEW = "Write a review of a hotel."
CHAT = [{"role": "user", "content": REVIEW}]
TEXT = "<|user|>Write a review of a hotel.<|end|><|assistant|>"


def events(server, **fields):
    with connect_sse(server.http, "POST", "/generate", json={**fields, "stream": True}) as source:
        assert source.response.status_code == 200
        data = [event.data for event in source.iter_sse()]
    assert data[-1] == "[DONE]"
    return [json.loads(event) for event in data[:-1]]


def near(one, other):
    """Equal but for the rounding of another batch."""
    scores = pytest.approx(other["scores"], abs=1e-4)
    numbers = [name for name in other if name not in ("scores", "error", "trace")]
    return one["scores"] == scores and all(
        one[name] == pytest.approx(other[name], abs=1e-3) for name in numbers
    )


def test_answer_has_the_documented_shape(server):
    answer = server.generate(prompt=TEXT, beta=2, scorers={"sentiment": 1}, max_tokens=24, seed=1)
    assert set(answer) == {"id", "model", "choices", "usage"}
    assert answer["model"] == "demo"
    (choice,) = answer["choices"]
    assert set(choice) == {"index", "text", "token_ids", "finish_reason", "guidance"}
    guidance = choice["guidance"]
    assert guidance["kl"] > 0
    assert guidance["error"] is None
    assert set(guidance["scores"]) == {"sentiment"}
    assert guidance["steps"] == len(choice["token_ids"]) == answer["usage"]["completion_tokens"]
    assert 0 < guidance["scored_steps"] <= guidance["steps"]


def test_beta_steers_towards_what_the_scorer_likes(server):
    def mean(beta):
        answer = server.generate(
            messages=CHAT, beta=beta, scorers={"sentiment": 1}, n=8, seed=3, max_tokens=40
        )
        scores = [c["guidance"]["scores"]["sentiment"] for c in answer["choices"]]
        return sum(scores) / len(scores)

    assert mean(-4) < mean(0) < mean(4)


def test_text_ids_and_messages_are_the_same_prompt(server):
    request = {"temperature": 0, "max_tokens": 16, "beta": 2}
    by_messages = server.generate(messages=CHAT, **request)
    by_text = server.generate(prompt=TEXT, **request)
    ids = server.http.post("/tokenize", json={"prompt": TEXT, "add_special_tokens": False}).json()[
        "tokens"
    ]
    by_ids = server.generate(prompt_token_ids=ids, **request)
    (first,), *others = (a["choices"] for a in (by_messages, by_text, by_ids))
    for (other,) in others:
        assert other["token_ids"] == first["token_ids"]
        assert near(other["guidance"], first["guidance"])


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 1.0, "seed": 5}])
def test_beta_zero_is_the_base(server, sampling):
    request = {"prompt": TEXT, "max_tokens": 32, **sampling}
    guided = server.generate(beta=0, **request)["choices"][0]
    base = server.http.post("/v1/completions", json={**request, "return_token_ids": True})
    assert guided["token_ids"] == base.json()["choices"][0]["token_ids"]
    assert guided["guidance"]["kl"] == 0
    steered = server.generate(beta=8, scorers={"brevity": -1}, **request)["choices"][0]
    assert steered["token_ids"] != guided["token_ids"]  # the comparison can fail


def test_stream_is_the_answer_in_pieces(server):
    request = {"messages": CHAT, "n": 3, "seed": 9, "max_tokens": 24, "beta": 2, "logprobs": 1}
    whole = server.generate(**request)
    pieces = events(server, **request)
    assert pieces[-1]["choices"] == []
    assert pieces[-1]["usage"] == whole["usage"]
    for choice in whole["choices"]:
        mine = [c for p in pieces for c in p["choices"] if c["index"] == choice["index"]]
        assert "".join(c["text"] for c in mine) == choice["text"]
        assert [t for c in mine for t in c["token_ids"]] == choice["token_ids"]
        logprobs = [x["logprob"] for c in mine for x in c["logprobs"]]
        assert logprobs == pytest.approx([x["logprob"] for x in choice["logprobs"]], abs=1e-4)
        assert mine[-1]["finish_reason"] == choice["finish_reason"]
        assert near(mine[-1]["guidance"], choice["guidance"])
        assert all("guidance" not in c for c in mine[:-1])


def test_text_outside_ascii_comes_whole_through_a_stream(server):
    # The demo's tokens are bytes here: each of these characters spans several of them.
    request = {
        "prompt": "👩‍🚀 你好",
        "temperature": 1.5,
        "seed": 2,
        "max_tokens": 32,
        "ignore_eos": True,
    }
    whole = server.generate(**request)["choices"][0]["text"]
    pieces = events(server, **request)
    assert "".join(c["text"] for p in pieces for c in p["choices"]) == whole


def test_trace_tells_every_step(server):
    answer = server.generate(messages=CHAT, trace=True, max_tokens=12, temperature=0, beta=3)
    choice = answer["choices"][0]
    trace = choice["guidance"]["trace"]
    assert [step["token"] for step in trace] == choice["token_ids"]
    assert any(len(step["candidates"]) > 1 for step in trace)


def test_stop_and_length(server):
    request = {"messages": CHAT, "temperature": 0, "max_tokens": 40, "beta": 2}
    plain = server.generate(**request)["choices"][0]
    word = plain["text"].split()[1]
    stopped = server.generate(**request, stop=[word])["choices"][0]
    assert stopped["finish_reason"] == "stop"
    assert stopped["text"] == plain["text"][: plain["text"].index(word)]
    assert stopped["guidance"]["steps"] == len(stopped["token_ids"])
    short = server.generate(**{**request, "max_tokens": 3})["choices"][0]
    assert short["finish_reason"] == "length"
    assert short["token_ids"] == plain["token_ids"][:3]


def test_default_scorers_are_used_when_none_is_named(server):
    answer = server.generate(messages=CHAT, max_tokens=8)
    assert set(answer["choices"][0]["guidance"]["scores"]) == {
        "sentiment",
        "formality",
        "brevity",
    }


def test_many_long_seeded_prompts(server):
    """More than one step can load: vLLM 0.32 dies on the CPU if a seeded prompt is split."""

    def ask(seed):
        fields = {"prompt": "the room was fine " * 80, "seed": seed, "max_tokens": 2}
        return server.generate(**fields, scorers={"brevity": 1.0})["usage"]["prompt_tokens"]

    with ThreadPoolExecutor(32) as pool:
        assert sum(pool.map(ask, range(32))) > 10_000
