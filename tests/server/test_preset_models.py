"""`demo@warm` on the real engine: each route answers as if the preset's guidance had been sent."""

import json

import openai
import pytest
from conftest import KEY

pytestmark = pytest.mark.scorecard(letter="B")

GUIDANCE = {"scorers": {"sentiment": 1}, "beta": 3}
"""That of conftest.WARM."""
TURNS = [{"role": "user", "content": "Write a review of a hotel."}]
GREEDY = {"temperature": 0, "max_tokens": 12}
TOOL = {
    "type": "function",
    "function": {
        "name": "rate",
        "parameters": {
            "type": "object",
            "properties": {"kind": {"enum": ["hotel", "kettle"]}},
            "required": ["kind"],
        },
    },
}
BODIES = {
    "chat": ("/v1/chat/completions", {"messages": TURNS, **GREEDY}),
    "tools": (
        "/v1/chat/completions",
        {"messages": TURNS, "tools": [TOOL], "tool_choice": "required", **GREEDY},
    ),
    "batch": ("/v1/chat/completions/batch", {"messages": [TURNS, TURNS], **GREEDY}),
    "completions": ("/v1/completions", {"prompt": ["The room was", "This cable"], **GREEDY}),
    "responses": (
        "/v1/responses",
        {"input": TURNS[0]["content"], "temperature": 0, "max_output_tokens": 12},
    ),
    "messages": ("/v1/messages", {"messages": TURNS, **GREEDY}),
    "invocations": ("/invocations", {"messages": TURNS, **GREEDY}),
    "generate": ("/generate", {"messages": TURNS, **GREEDY}),
}
STREAMS = ("chat", "tools", "completions", "responses", "messages", "generate")
CHANGES = ("id", "request_id", "created", "created_at", "completed_at", "item_id", "call_id")
"""Fields that differ between two equal requests."""


def steady(value):
    """An answer without what differs between two equal requests."""
    if isinstance(value, list):
        return [steady(entry) for entry in value]
    if isinstance(value, dict):
        return {k: steady(v) for k, v in value.items() if k not in CHANGES}
    return round(value, 3) if isinstance(value, float) else value


def post(server, path, fields, model, **more):
    answer = server.http.post(path, json={**fields, "model": model, **more})
    assert answer.status_code == 200, answer.text
    return answer


def events(answer):
    datas = (event.partition("data: ")[2] for event in answer.text.split("\n\n"))
    return [json.loads(data) for data in datas if data.startswith("{")]


def models(value):
    """Every name of a model in an answer."""
    if isinstance(value, list):
        return {name for entry in value for name in models(entry)}
    if isinstance(value, dict):
        inner = {name for entry in value.values() for name in models(entry)}
        return inner | ({value["model"]} if isinstance(value.get("model"), str) else set())
    return set()


def said(answers):
    """(text by choice, records) of a stream, which may cut the same text differently."""
    texts, records = {}, []
    for event in answers:
        for choice in event.get("choices", [event]):
            delta = choice.get("delta") or choice
            if isinstance(delta, dict):
                called = [c["function"].get("arguments", "") for c in delta.get("tool_calls") or ()]
                delta = "".join([delta.get("content") or delta.get("text") or "", *called])
            index = choice.get("index", 0)
            texts[index] = texts.get(index, "") + delta
        records += [choice.get("guidance") for choice in event.get("choices", [event])]
    return texts, sorted(map(json.dumps, steady([record for record in records if record])))


def renamed(value):
    text = json.dumps(value)
    return json.loads(text.replace('"model": "demo@warm"', '"model": "demo"'))


@pytest.mark.parametrize("name", BODIES)
def test_a_preset_answers_as_its_guidance(server, name):
    path, fields = BODIES[name]
    guided = GUIDANCE if path == "/generate" else {"guidance": GUIDANCE}
    by_hand = post(server, path, fields, "demo", **guided).json()
    by_name = post(server, path, fields, "demo@warm").json()
    assert '"kl"' in json.dumps(by_name)
    assert models(by_name) == ({"demo@warm"} if models(by_hand) else set())
    assert steady(renamed(by_name)) == steady(by_hand)
    if name in STREAMS:
        stream = {**fields, "stream": True}
        by_hand = events(post(server, path, stream, "demo", **guided))
        by_name = events(post(server, path, stream, "demo@warm"))
        assert models(by_name) == {"demo@warm"}
        texts, records = said(by_name)
        assert (texts, records) == said(by_hand)
        assert records
        assert any(texts.values())


def test_a_request_overrides_the_preset(server):
    path, fields = BODIES["chat"]
    over = {"scorers": {"sentiment": -1}}
    by_name = post(server, path, fields, "demo@warm", guidance=over).json()
    by_hand = post(server, path, fields, "demo", guidance={**GUIDANCE, **over}).json()
    assert steady(renamed(by_name)) == steady(by_hand)


def test_the_models_are_listed_and_texts_are_read(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client:
        assert [one.id for one in client.models.list()] == ["demo", "demo@warm"]
        one = client.models.retrieve("demo@warm")
        assert (one.id, one.parent, one.max_model_len) == ("demo@warm", "demo", 512)
        for unknown in ("demo@cold", "nobody"):
            with pytest.raises(openai.NotFoundError):
                client.models.retrieve(unknown)
        with pytest.raises(openai.NotFoundError):
            client.completions.create(model="demo@cold", prompt="x")
    for path, fields in (
        ("/tokenize", {"prompt": "The room"}),
        ("/tokenize", {"messages": TURNS}),
        ("/v1/messages/count_tokens", {"messages": TURNS}),
    ):
        by_name = post(server, path, fields, "demo@warm").json()
        assert by_name == post(server, path, fields, "demo").json()
    refused = server.http.post("/v1/systemone", json={"model": "demo@warm"})
    assert refused.status_code == 400
