"""Principles over HTTP, on every guided route of the demo's server."""

import json

import openai
import pytest
from conftest import KEY

from trimtab_models import demo

PROMPT = "The room was"
REQUEST = "Write a review of a hotel."
CHAT = [{"role": "user", "content": REQUEST}]
KIND, SHORT = "Write a kind review of a hotel.", "Write a short review of a cable."
TWO = {"principles": [{"text": KIND, "weight": 1.0}, {"text": SHORT, "weight": -0.5}], "beta": 1.5}
PARTS = {"principle 1", "principle 2"}


def check(record, parts=PARTS):
    assert record["error"] is None
    assert record["kl"] > 0
    assert set(record["kl_parts"]) == set(parts)
    assert sum(record["kl_parts"].values()) == pytest.approx(record["kl"] - record["kl_tail"])


@pytest.fixture(scope="module")
def whole(server):
    """The greedy answer to the chat, with two principles."""
    return server.generate(messages=CHAT, temperature=0, max_tokens=24, trace=True, **TWO)


def test_weight_zero_and_beta_zero_are_the_base(server, whole):
    fields = {"messages": CHAT, "temperature": 0, "max_tokens": 24}
    base = server.generate(**fields, beta=0)["choices"][0]
    none = server.generate(**fields, beta=0, principles=TWO["principles"])["choices"][0]
    zero = {"principles": [{"text": KIND, "weight": 0}], "beta": 5}
    weightless = server.generate(**fields, **zero)["choices"][0]
    assert none["token_ids"] == weightless["token_ids"] == base["token_ids"]
    assert none["guidance"]["kl"] == 0
    assert weightless["guidance"]["kl"] == pytest.approx(0, abs=1e-5)
    assert whole["choices"][0]["token_ids"] != base["token_ids"], "else these prove nothing"


def test_the_record_and_the_usage(server, whole):
    [choice] = whole["choices"]
    check(choice["guidance"])
    assert choice["guidance"]["scores"] == {}
    scored = [step for step in choice["guidance"]["trace"] if step["scores"]]
    assert scored
    assert all(set(step["scores"]) == PARTS for step in scored)
    base = server.generate(messages=CHAT, temperature=0, max_tokens=24, beta=0)
    assert whole["usage"]["prompt_tokens"] == base["usage"]["prompt_tokens"]
    assert whole["usage"]["completion_tokens"] == len(choice["token_ids"])


def test_a_stream_has_no_seam(server, whole):
    fields = {"messages": CHAT, "temperature": 0, "max_tokens": 24, **TWO, "stream": True}
    with server.http.stream("POST", "/generate", json=fields) as answer:
        data = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    events = [choice for line in data[:-1] for choice in json.loads(line)["choices"]]
    tokens = [token for event in events for token in event["token_ids"]]
    assert tokens == whole["choices"][0]["token_ids"]
    assert "".join(event["text"] for event in events) == whole["choices"][0]["text"]
    check(events[-1]["guidance"])


def test_every_route_agrees(server, whole):
    text = whole["choices"][0]["text"]
    fields = {"model": "demo", "temperature": 0, "guidance": TWO}
    chat = {**fields, "messages": CHAT, "max_tokens": 24}
    bodies = {
        "/v1/chat/completions": chat,
        "/v1/chat/completions/batch": {**chat, "messages": [CHAT, CHAT]},
        "/invocations": chat,
        "/v1/messages": chat,
        "/v1/responses": {**fields, "input": CHAT, "max_output_tokens": 24},
        # The text of the chat, rendered: its principle is a system turn on this route too.
        "/v1/completions": {**fields, "prompt": demo.chat(REQUEST), "max_tokens": 24},
    }
    for path, body in bodies.items():
        answer = server.http.post(path, json=body)
        assert answer.status_code == 200, (path, answer.text)
        assert json.dumps(text, ensure_ascii=False)[1:-1] in answer.text, path
        record = answer.json().get("guidance") or [c["guidance"] for c in answer.json()["choices"]]
        for one in record:
            check(one)
    flat = {f"trimtab_{k}": v if k == "beta" else json.dumps(v) for k, v in TWO.items()}
    body = {**chat, "vllm_xargs": flat}
    del body["guidance"]
    answer = server.http.post("/v1/chat/completions", json=body).json()
    assert answer["choices"][0]["message"]["content"] == text


def test_scorers_a_budget_and_several_choices_in_a_stream(server):
    names = ("sentiment", "formality", "brevity")
    guidance = {**TWO, "scorers": dict.fromkeys(names, 1.0), "kl_budget": 2.0}
    del guidance["beta"]
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client:
        chunks = list(
            client.chat.completions.create(
                model="demo",
                messages=CHAT,
                max_tokens=24,
                n=2,
                seed=3,
                logprobs=True,
                stream=True,
                extra_body={"guidance": guidance},
            )
        )
    ended = [c.choices[0] for c in chunks if c.choices and c.choices[0].finish_reason]
    assert len(ended) == 2
    for choice in ended:
        check(choice.guidance, {*PARTS, *names})
        assert choice.guidance["beta"]["mean"] > 0


def test_one_seed_gives_one_answer_whatever_else_runs(server):
    fields = {"prompt": PROMPT, "temperature": 1, "max_tokens": 16, "seed": 5, **TWO}
    alone = server.generate(**fields)["choices"][0]
    three = server.generate(**fields, n=3)["choices"]
    assert three[0]["token_ids"] == alone["token_ids"]
    assert len({tuple(choice["token_ids"]) for choice in three}) == 3
    for choice in (alone, *three):
        check(choice["guidance"])


def test_a_grammar_and_stops_hold(server):
    answer = server.http.post(
        "/v1/chat/completions",
        json={
            "model": "demo",
            "messages": CHAT,
            "max_tokens": 24,
            "structured_outputs": {"choice": ["good", "bad"]},
            "guidance": TWO,
        },
    ).json()
    assert answer["choices"][0]["message"]["content"] in ("good", "bad")
    assert answer["choices"][0]["guidance"]["error"] is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt_token_ids": [5]}, "principles"),
        ({"prompt": PROMPT, "repetition_penalty": 1.5}, "repetition_penalty"),
        ({"prompt": PROMPT, "search": {"method": "best_of_n", "n": 2}}, "principles"),
        ({"prompt": "a " * 450}, "principles"),
    ],
)
def test_what_principles_do_not_go_with_is_refused(server, fields, param):
    long = {"principles": [{"text": "so " * 200, "weight": 1}]} if len(str(fields)) > 500 else TWO
    answer = server.http.post("/generate", json={**fields, **long, "temperature": 1})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param, answer.text


def test_a_client_that_leaves_takes_its_rows_with_it(server):
    fields = {"prompt": PROMPT, "max_tokens": 300, "ignore_eos": True, "stream": True, **TWO}
    with server.http.stream("POST", "/generate", json=fields) as answer:
        next(answer.iter_lines())
    for _ in range(100):
        text = server.http.get("/metrics").text
        counts = [
            line for line in text.splitlines() if line.startswith("vllm:num_requests_running{")
        ]
        if sum(float(line.split()[-1]) for line in counts) == 0:
            break
    else:
        pytest.fail("the rows of an answer that nobody reads go on")
