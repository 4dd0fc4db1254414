"""Searches over HTTP, on the real engine."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from httpx_sse import connect_sse

TEXT = "<|user|>Write a review of a hotel.<|end|><|assistant|>"
ASKED = {"prompt": TEXT, "scorers": {"sentiment": 1.0}, "beta": 0.0, "seed": 4, "max_tokens": 40}
METHODS = [
    {"method": "best_of_n", "n": 6},
    {"method": "blockwise", "n": 4, "block": 6},
    {"method": "beam", "width": 2, "expand": 3, "block": 6},
    {"method": "smc", "particles": 6, "block": 6},
    {"method": "mcts", "simulations": 4},
]
by_method = pytest.mark.parametrize("search", METHODS, ids=lambda s: s["method"])


@by_method
def test_answer_has_the_documented_shape(server, search):
    beta = 2.0 if search["method"] == "smc" else 0.0
    answer = server.generate(**{**ASKED, "beta": beta}, search=search)
    assert set(answer) == {"id", "model", "choices", "usage"}
    [choice] = answer["choices"]
    assert set(choice) == {"index", "text", "token_ids", "finish_reason", "guidance", "search"}
    assert choice["finish_reason"] in ("stop", "length")
    assert set(choice["guidance"]) == {"kl", "kl_tail", "scores", "steps", "error"}
    report = choice["search"]
    assert report["method"] == search["method"]
    assert report["value"] == pytest.approx(choice["guidance"]["scores"]["sentiment"])
    usage = answer["usage"]
    assert usage["completion_tokens"] == len(choice["token_ids"]) == choice["guidance"]["steps"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert set(usage["search"]) == {"drawn_tokens", "read_tokens", "scorer_tokens"}
    assert usage["search"]["drawn_tokens"] >= usage["completion_tokens"]
    assert usage["search"]["scorer_tokens"] >= usage["completion_tokens"]


@by_method
def test_search_finds_better_answers_than_drawing(server, search):
    def mean(**more):
        choices = [
            server.generate(**{**ASKED, "seed": seed, **more})["choices"][0] for seed in range(4)
        ]
        return sum(choice["guidance"]["scores"]["sentiment"] for choice in choices) / 4

    beta = 4.0 if search["method"] == "smc" else 0.0
    assert mean(search=search, beta=beta) > mean() + 0.3


def test_best_of_n_is_the_best_of_n_requests(server):
    """Its draws are the draws of n requests with the seeds of `trimtab.sampling.sample_seed`."""
    from trimtab.sampling import sample_seed

    result = server.generate(**ASKED, search={"method": "best_of_n", "n": 5})
    drawn = [
        server.generate(**{**ASKED, "seed": sample_seed(4, 0, i)})["choices"][0] for i in range(5)
    ]
    scores = [choice["guidance"]["scores"]["sentiment"] for choice in drawn]
    assert result["choices"][0]["search"]["values"] == pytest.approx(scores, abs=1e-4)
    best = drawn[max(range(5), key=scores.__getitem__)]
    for name in ("text", "token_ids", "finish_reason"):
        assert result["choices"][0][name] == best[name]
    tokens = sum(len(choice["token_ids"]) for choice in drawn)
    assert result["usage"]["search"]["drawn_tokens"] == tokens


@pytest.mark.parametrize("beta", [1.0, 6.0])
def test_mcts_without_simulations_is_greedy_guidance(server, beta):
    request = {**ASKED, "beta": beta, "temperature": 0}
    greedy = server.generate(**request)["choices"][0]
    result = server.generate(**request, search={"method": "mcts", "simulations": 0})["choices"][0]
    for name in ("text", "token_ids", "finish_reason"):
        assert result[name] == greedy[name]
    base = server.generate(**{**request, "beta": 0.0})["choices"][0]
    assert base["token_ids"] != greedy["token_ids"]  # the comparison can fail


def test_draws_may_be_guided(server):
    search = {"method": "best_of_n", "n": 3}
    plain = server.generate(**ASKED, search=search)
    guided = server.generate(**{**ASKED, "beta": 6.0}, search=search)
    assert plain["choices"][0]["guidance"]["kl"] == 0
    assert guided["choices"][0]["guidance"]["kl"] > 0.5
    narrow = {"beta": 6.0, "k": 4, "mass": 1.0, "tail": "truncate"}
    cut = server.generate(**{**ASKED, **narrow}, search=search)["choices"][0]["guidance"]
    assert 0 < cut["kl_tail"] < cut["kl"]
    assert guided["choices"][0]["search"]["value"] > plain["choices"][0]["search"]["value"]


@by_method
def test_stream_is_the_answer_in_pieces(server, search):
    request = {**ASKED, "beta": 2.0, "search": search}
    whole = server.generate(**request)
    with connect_sse(server.http, "POST", "/generate", json={**request, "stream": True}) as source:
        assert source.response.status_code == 200
        data = [event.data for event in source.iter_sse()]
    assert data[-1] == "[DONE]"
    *pieces, last = [json.loads(event) for event in data[:-1]]
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    choices = [choice for piece in pieces for choice in piece["choices"]]
    [choice] = whole["choices"]
    assert "".join(c["text"] for c in choices) == choice["text"]
    assert [t for c in choices for t in c["token_ids"]] == choice["token_ids"]
    assert [c["finish_reason"] for c in choices[:-1]] == [None] * (len(choices) - 1)
    assert choices[-1]["finish_reason"] == choice["finish_reason"]
    assert choices[-1]["search"]["value"] == pytest.approx(choice["search"]["value"], abs=1e-4)
    if search["method"] in ("best_of_n", "smc"):
        assert len(choices) == 1
    if search["method"] == "mcts":
        assert len(choices) > 4


def test_blocks_may_end_at_a_text(server):
    """A stream's pieces are the blocks that were kept."""
    search = {"method": "blockwise", "n": 3, "block": {"until": ".", "tokens": 16}}
    body = {**ASKED, "search": search, "stream": True, "max_tokens": 60}
    with connect_sse(server.http, "POST", "/generate", json=body) as source:
        events = [event.data for event in source.iter_sse()]
    pieces = [c for event in events[:-1] for c in json.loads(event)["choices"]]
    blocks = [piece for piece in pieces if piece["token_ids"]]
    texts = [block["text"].rstrip() for block in blocks]
    assert all("." not in text[:-1] for text in texts)
    assert sum(text.endswith(".") for text in texts) >= 2
    assert all(len(block["token_ids"]) <= 16 for block in blocks)
    # The last block ends with the answer; the others with the text, or as long as they may be.
    assert all(
        text.endswith(".") or len(block["token_ids"]) == 16
        for text, block in list(zip(texts, blocks, strict=True))[:-1]
    )


BAD = {
    "block until nothing": {"search": {"method": "beam", "block": {"until": ""}}},
    "block until a number": {"search": {"method": "smc", "block": {"until": 3}}},
    "block of two kinds": {"search": {"method": "smc", "block": {"until": "a", "zebra": 3}}},
    "search null": {"search": None},
    "search text": {"search": "smc"},
    "no method": {"search": {"n": 4}},
    "method unknown": {"search": {"method": "zebra"}},
    "n too large": {"search": {"method": "best_of_n", "n": 257}},
    "another's field": {"search": {"method": "best_of_n", "block": 4}},
    "width times expand": {"search": {"method": "beam", "width": 16, "expand": 16}},
    "temperature 0": {"temperature": 0},
    "n 2": {"n": 2},
    "logprobs": {"logprobs": 1},
    "stop": {"stop": "zebra"},
    "min_tokens": {"min_tokens": 3},
    "penalty": {"presence_penalty": 1.0},
    "ignore_eos": {"ignore_eos": True},
    "trace": {"trace": True},
    "on_error": {"on_error": "unguided"},
    "tail": {"tail": "mean", "search": {"method": "mcts"}},
    "scorer unknown": {"scorers": {"zebra": 1.0}},
    "stop id out of range": {"stop_token_ids": [2**30]},
    "unknown field": {"zebra": 1},
}


@pytest.mark.parametrize("fields", BAD.values(), ids=BAD)
@pytest.mark.parametrize("stream", [False, True])
def test_bad_bodies_are_refused(server, fields, stream):
    body = {**ASKED, "search": {"method": "best_of_n", "n": 2}, **fields, "stream": stream}
    answer = server.http.post("/generate", json=body)
    assert 400 <= answer.status_code < 500, answer.text
    assert "zebra" not in answer.text
    assert len(answer.json()["error"]["message"]) > 20


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("beta", [0.0, 2.0])
def test_a_scorer_that_fails_is_reported(server, beta, stream):
    body = {**ASKED, "scorers": {"raises": 1.0}, "beta": beta, "stream": stream}
    answer = server.http.post("/generate", json={**body, "search": {"method": "best_of_n", "n": 3}})
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "scorer_error"
    assert "raises" in answer.json()["error"]["message"]
    assert server.generate(**ASKED)["choices"][0]["text"]


def running(server):
    lines = server.http.get("/metrics").text.splitlines()
    return sum(float(x.split()[-1]) for x in lines if x.startswith("vllm:num_requests_"))


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_every_draw(server, stream):
    """At this temperature answers are long: left alone, the search takes more than ten seconds."""
    body = {**ASKED, "prompt": "The room was", "temperature": 2, "max_tokens": 480}
    body |= {"search": {"method": "best_of_n", "n": 256}, "stream": stream}

    def leave():
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(
                f"{server.url}/generate", json=body, headers=server.http.headers, timeout=1.5
            )

    with ThreadPoolExecutor(1) as pool:
        left = pool.submit(leave)
        most = 0.0
        while not left.done():
            most = max(most, running(server))
        left.result()
    assert most > 100
    deadline = time.monotonic() + 3
    while running(server) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert running(server) == 0
