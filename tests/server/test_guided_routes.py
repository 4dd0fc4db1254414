"""The routes beside chat and completions on the real engine: batches, and odd bodies."""

import pytest

pytestmark = pytest.mark.scorecard(letter="B")

SENTIMENT = {"scorers": {"sentiment": 1}, "beta": 3}
HOTEL = [{"role": "user", "content": "Write a review of a hotel."}]
KETTLE = [{"role": "user", "content": "Write a review of a kettle."}]
ODD = [
    [1],
    ["x"],
    [None],
    [[]],
    [{}],
    [{"role": "user", "content": ["text"]}],
    [{"role": "user", "content": [1]}],
    [{"role": "user", "content": [None]}],
    [{"role": "user", "content": [{"type": "text"}]}],
    [{"role": "user", "content": [{"text": 5}]}],
    [{"role": "user", "content": 5}],
    [{"role": "user", "content": None}],
    [{"role": 5, "content": "x"}],
    [{"role": "assistant", "tool_calls": [1]}],
    [{"role": "assistant", "content": None, "tool_calls": [{"function": None}]}],
    None,
    {},
    5,
    [],
]


def post(server, path, status=200, **fields):
    answer = server.http.post(path, json=fields)
    assert answer.status_code == status, answer.text
    return answer.json()


def text(choice):
    return choice["message"]["content"]


def test_a_batch_is_guided_conversation_by_conversation(server):
    common = {"temperature": 0, "max_tokens": 24, "guidance": SENTIMENT}
    batch = post(server, "/v1/chat/completions/batch", messages=[HOTEL, KETTLE, HOTEL], **common)[
        "choices"
    ]
    assert [choice["index"] for choice in batch] == [0, 1, 2]
    for choice, messages in zip(batch, (HOTEL, KETTLE, HOTEL), strict=True):
        [alone] = post(server, "/v1/chat/completions", messages=messages, **common)["choices"]
        assert text(choice) == text(alone)
        assert choice["guidance"]["kl"] == pytest.approx(alone["guidance"]["kl"], abs=1e-4)
        assert choice["guidance"]["scores"] == pytest.approx(alone["guidance"]["scores"], abs=1e-4)
    bare = post(
        server, "/v1/chat/completions/batch", messages=[HOTEL], temperature=0, max_tokens=24
    )["choices"]
    assert "guidance" not in bare[0]
    assert text(bare[0]) != text(batch[0])


def test_a_batch_is_guarded(server):
    path, fields = "/v1/chat/completions/batch", {"messages": [HOTEL], "max_tokens": 2}
    unknown = {"scorers": {"unheard-of": 1}}
    error = post(server, path, 404, **fields, guidance=unknown)["error"]
    assert error["code"] == "scorer_not_found"
    for over in ({"messages": [HOTEL] * 17}, {"n": "2"}, {"logprobs": True, "top_logprobs": 21}):
        post(server, path, 400, **{**fields, **over})
        post(server, path, 400, **{**fields, **over}, guidance={})
    fault = post(
        server,
        path,
        500,
        **{**fields, "max_tokens": 60, "ignore_eos": True},
        guidance={"scorers": {"nan": 1}},
    )
    assert fault["error"]["type"] == "scorer_error"


@pytest.mark.parametrize(
    "path", ["/v1/systemone", "/generative_scoring", "/tokenize", "/v1/chat/completions/render"]
)
def test_other_routes_refuse_guidance(server, path):
    for fields in ({"guidance": SENTIMENT}, {"vllm_xargs": {"trimtab_record": "mine"}}):
        error = post(server, path, 400, messages=HOTEL, prompt="x", **fields)["error"]
        assert "does not go with this route" in error["message"]


@pytest.mark.parametrize("messages", ODD, ids=repr)
def test_odd_messages_are_refused_as_without_guidance(server, messages):
    for path, fields in (
        ("/v1/chat/completions", {"messages": messages}),
        ("/v1/chat/completions/batch", {"messages": [messages]}),
        ("/v1/messages", {"messages": messages}),
        ("/v1/messages", {"messages": HOTEL, "system": messages}),
        ("/v1/responses", {"input": messages}),
        ("/invocations", {"messages": messages}),
    ):
        body = {"model": "demo", "max_tokens": 2, "temperature": 0, **fields}
        plain = server.http.post(path, json=body)
        guided = server.http.post(path, json={**body, "guidance": SENTIMENT})
        assert guided.status_code == plain.status_code, (path, plain.text, guided.text)
        assert plain.status_code < 500, (path, plain.text)


def test_nulls_and_a_random_seed(server):
    fields = {"prompt": "The room was", "max_tokens": 12, "beta": 1}
    nulls = dict.fromkeys(("messages", "n", "stop", "top_k", "seed", "logprobs", "stream"))
    assert server.generate(**fields, **nulls)["choices"]
    drawn = {server.generate(**fields, seed=-1)["choices"][0]["text"] for _ in range(6)}
    assert len(drawn) > 1
    assert len({server.generate(**fields, seed=1)["choices"][0]["text"] for _ in range(3)}) == 1
