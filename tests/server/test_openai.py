"""vLLM's own routes with a `guidance` object, through the official client."""

import json

import openai
import pytest
from conftest import KEY

CHAT = [{"role": "user", "content": "Write a review of a hotel."}]
GUIDED = {"guidance": {"scorers": {"sentiment": 1}, "beta": 3}}
SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"type": "string", "enum": ["hotel", "kettle", "cable"]},
        "good": {"type": "boolean"},
    },
    "required": ["kind", "good"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "rate", "parameters": SCHEMA, "strict": True}}


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as made:
        yield made


def chat(client, **fields):
    request = {"model": "demo", "messages": CHAT, "max_tokens": 32, "extra_body": GUIDED}
    return client.chat.completions.create(**{**request, **fields})


def check(guidance, scorers=("sentiment",)):
    assert guidance["kl"] > 0
    assert set(guidance["scores"]) == set(scorers)
    assert guidance["steps"] > 0


def test_chat(client):
    answer = chat(client, temperature=0)
    check(answer.choices[0].guidance)
    base = chat(client, temperature=0, extra_body={})
    assert not hasattr(base.choices[0], "guidance")
    zero = chat(client, temperature=0, extra_body={"guidance": {"beta": 0}})
    assert zero.choices[0].message.content == base.choices[0].message.content
    assert zero.choices[0].guidance["kl"] == 0


def test_empty_guidance_means_the_defaults(client):
    answer = chat(client, extra_body={"guidance": {}})
    check(answer.choices[0].guidance, ("sentiment", "formality", "brevity"))


def test_chat_and_generate_agree(client, server):
    answer = chat(client, temperature=0)
    same = server.generate(messages=CHAT, temperature=0, max_tokens=32, **GUIDED["guidance"])[
        "choices"
    ][0]
    assert same["text"] == answer.choices[0].message.content
    assert same["guidance"]["kl"] == pytest.approx(answer.choices[0].guidance["kl"], abs=1e-4)


def test_stream(client):
    whole = chat(client, temperature=0)
    chunks = list(chat(client, temperature=0, stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    ended = [c.choices[0] for c in chunks if c.choices and c.choices[0].finish_reason]
    assert len(ended) == 1
    assert ended[0].guidance["steps"] == whole.choices[0].guidance["steps"]
    assert ended[0].guidance["kl"] == pytest.approx(whole.choices[0].guidance["kl"], abs=1e-4)
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


@pytest.mark.parametrize("stream", [False, True])
def test_four_choices(client, stream):
    answer = chat(client, n=4, seed=1, stream=stream)
    chunks = answer if stream else [answer]
    ended = [c for chunk in chunks for c in chunk.choices if c.finish_reason]
    assert sorted(c.index for c in ended) == [0, 1, 2, 3]
    for choice in ended:
        check(choice.guidance)


def test_completions_of_several_prompts(client):
    request = {"model": "demo", "max_tokens": 8, "temperature": 0, "extra_body": GUIDED}
    prompts = ["The room was", "I bought a kettle and"]
    sampled = {**request, "temperature": 1, "top_p": 1e-6}  # greedy in effect; n is then allowed
    together = client.completions.create(prompt=prompts, n=2, **sampled)
    assert [c.index for c in together.choices] == [0, 1, 2, 3]
    for i, prompt in enumerate(prompts):
        alone = client.completions.create(prompt=prompt, **request).choices[0]
        for choice in together.choices[2 * i : 2 * i + 2]:
            assert choice.text == alone.text
            assert choice.guidance["scores"] == pytest.approx(alone.guidance["scores"], abs=1e-4)


def test_stop_strings(client):
    plain = chat(client, temperature=0).choices[0].message.content
    word = plain.split()[1]
    stopped = chat(client, temperature=0, stop=[word]).choices[0]
    assert stopped.message.content == plain[: plain.index(word)]
    check(stopped.guidance)


def test_logprobs(client):
    choice = chat(client, temperature=0, logprobs=True, top_logprobs=3).choices[0]
    assert len(choice.logprobs.content) == choice.guidance["steps"]
    assert all(len(position.top_logprobs) >= 3 for position in choice.logprobs.content)


@pytest.mark.parametrize("guided", [True, False])
def test_no_more_than_20_logprobs(client, guided):
    body = GUIDED if guided else None
    with pytest.raises(openai.BadRequestError, match="top_logprobs is over this server's limit"):
        chat(client, logprobs=True, top_logprobs=21, extra_body=body)
    with pytest.raises(openai.BadRequestError, match="limit of 20"):
        client.completions.create(model="demo", prompt="A", logprobs=21, extra_body=body)


@pytest.mark.parametrize("beta", [-8, 8])
def test_json_schema_stays_valid(client, beta):
    form = {"type": "json_schema", "json_schema": {"name": "rating", "schema": SCHEMA}}
    body = {"guidance": {"scorers": {"sentiment": 1}, "beta": beta}}
    answer = chat(client, n=4, seed=0, response_format=form, max_tokens=64, extra_body=body)
    for choice in answer.choices:
        value = json.loads(choice.message.content)
        assert set(value) == {"kind", "good"}
        assert value["kind"] in SCHEMA["properties"]["kind"]["enum"]


@pytest.mark.parametrize("choice", [{"type": "function", "function": {"name": "rate"}}, "required"])
def test_tool_calls_are_well_formed(client, choice):
    answer = chat(client, tools=[TOOL], tool_choice=choice, temperature=0, max_tokens=96)
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "rate"
    assert set(json.loads(call.function.arguments)) == {"kind", "good"}
    assert answer.choices[0].guidance["steps"] > 0


@pytest.mark.parametrize("choice", ["auto", "none"])
def test_tools_may_stay_unused(client, choice):
    answer = chat(client, tools=[TOOL], tool_choice=choice, temperature=0)
    check(answer.choices[0].guidance)


def test_responses_and_messages(client, server):
    answer = client.responses.create(
        model="demo", input="Write a review of a hotel.", max_output_tokens=16, extra_body=GUIDED
    )
    check(answer.guidance[0])
    body = {"model": "demo", "messages": CHAT, "max_tokens": 16, **GUIDED}
    message = server.http.post("/v1/messages", json=body).json()
    check(message["guidance"][0])


def test_flat_keys_go_through_the_same_parser(client):
    flat = {"vllm_xargs": {"trimtab_scorers": "sentiment=1", "trimtab_beta": 3}}
    nested, plain = chat(client, temperature=0), chat(client, temperature=0, extra_body=flat)
    assert plain.choices[0].message == nested.choices[0].message
    assert plain.choices[0].guidance["kl"] == pytest.approx(nested.choices[0].guidance["kl"])
    with pytest.raises(openai.BadRequestError):
        chat(client, extra_body={"vllm_xargs": {"trimtab_beta": "strong"}})
    with pytest.raises(openai.BadRequestError):
        chat(client, extra_body={"vllm_xargs": {"trimtab_beta": 1, "trimtab_record": "mine"}})


def test_what_cannot_be_guided_is_refused(client):
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    for fields in (
        {"extra_body": {**GUIDED, "use_beam_search": True}},
        {"messages": [{"role": "user", "content": [image]}]},
    ):
        with pytest.raises(openai.BadRequestError):
            chat(client, **fields)
    with pytest.raises(openai.BadRequestError):
        client.completions.create(
            model="demo", prompt="", extra_body={**GUIDED, "prompt_embeds": "AAAA"}
        )
    with pytest.raises(openai.NotFoundError):
        chat(client, extra_body={"guidance": {"scorers": {"unheard-of": 1}}})
