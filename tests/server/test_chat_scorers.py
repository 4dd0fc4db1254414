"""Scorers that read conversations, in both servers: one reading on all routes, refusals at once.

The server has vLLM's scale-out routes, too.
"""

import asyncio
import json
import math

import pytest
import torch
from conftest import start
from scorecard import endings
from transformers import AutoTokenizer
from upstream_over import over

import conversing
from trimtab_models import demo
from trimtab_models.demo import foreign

pytestmark = pytest.mark.engine

OPEN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
STRICT = (
    "{% for m in messages %}{% if m.role == 'system' %}"
    "{{ raise_exception('no system turn here') }}{% endif %}{{ m.content }} {% endfor %}"
)
BASE = (
    "{% for m in messages %}{% if m.role == 'user' and loop.previtem is defined"
    " and loop.previtem.role == 'user' %}{{ raise_exception('two user turns') }}{% endif %}"
    "{{ m.role }}: {{ m.content }}\n{% endfor %}"
)
SYSTEM, USER = "Be kind.", "Write a review of a hotel."
SAID = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": USER}]
TWO = [{"role": "user", "content": "One."}, {"role": "user", "content": "Two."}]
SENTIMENT = {"scorers": {"sentiment": 1}, "beta": 3}
ASKED = {"model": "demo", "temperature": 0, "guidance": {"scorers": {"chatty": 1}, "beta": 20}}
READS = ("pair", "chat", "answer")
ROUTES = {
    "/v1/chat/completions": {"messages": SAID, "max_tokens": 12},
    "/v1/messages": {"system": SYSTEM, "messages": SAID[1:], "max_tokens": 12},
    "/v1/responses": {"instructions": SYSTEM, "input": USER, "max_output_tokens": 12},
    "/invocations": {"messages": SAID, "max_tokens": 12},
    "/v1/chat/completions/batch": {"messages": [SAID], "max_tokens": 12},
}


@pytest.fixture(scope="module")
def scorers(tmp_path_factory):
    """A classifier from chance, with strong opinions, under two chat templates."""
    root = tmp_path_factory.mktemp("chat")
    torch.manual_seed(0)
    model, tokenizer = foreign.roberta()
    torch.nn.init.normal_(model.classifier.out_proj.weight)
    for name, template in (("chatty", OPEN), ("strict", STRICT)):
        tokenizer.chat_template = template
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    (root / "base.jinja").write_text(BASE)
    base = AutoTokenizer.from_pretrained(demo.base())
    base.chat_template = BASE
    base.save_pretrained(root / "base")
    return root


@pytest.fixture(scope="module")
def ours(scorers):
    command = [
        "trimtab_server.cli",
        "serve",
        "demo",
        "--chat-template",
        str(scorers / "base.jinja"),
    ]
    command += ["--enable-scale-out", "--preset", f"warm={json.dumps({'guidance': SENTIMENT})}"]
    for name in ("chatty", "strict"):
        command += ["--scorer", f"{name}={scorers / name},family=text"]
    for reads in READS:
        command += ["--scorer", f"{reads}=conversing:{reads},family=function,reads={reads}"]
    with start(command, ready="/ready", VLLM_ENABLE_RESPONSES_API_STORE="1") as server:
        yield server


def records(answer):
    if "choices" in answer:
        return [choice["guidance"] for choice in answer["choices"]]
    return answer["guidance"]


def post(server, path, status=200, **fields):
    answer = server.http.post(path, json=fields)
    assert answer.status_code == status, answer.text
    return answer.json()


def test_the_same_conversation_has_the_same_scores_on_all_routes(ours):
    by_path = {
        path: records(post(ours, path, **ASKED, **fields))[0] for path, fields in ROUTES.items()
    }
    guidance = ASKED["guidance"]
    fields = {"messages": SAID, "max_tokens": 12, "temperature": 0}
    by_path["/generate"] = records(post(ours, "/generate", **fields, **guidance))[0]
    first = by_path["/v1/chat/completions"]
    assert first["kl"] > 0
    for path, record in by_path.items():
        assert record["scores"] == pytest.approx(first["scores"], abs=1e-4), path
        assert record["kl"] == pytest.approx(first["kl"], abs=1e-4), path
    bare = post(ours, "/v1/chat/completions", **ASKED, messages=SAID[1:], max_tokens=12)
    assert records(bare)[0]["scores"] != pytest.approx(first["scores"], abs=1e-4)  # the control


def test_functions_get_the_conversation_on_all_routes(ours):
    guidance = {"scorers": dict.fromkeys(READS, 1), "beta": 1}
    plain = {"model": "demo", "temperature": 0}
    by_path = {
        path: records(post(ours, path, **plain, guidance=guidance, **fields))[0]
        for path, fields in ROUTES.items()
    }
    fields = {"messages": SAID, "max_tokens": 12, "temperature": 0}
    by_path["/generate"] = records(post(ours, "/generate", **fields, **guidance))[0]
    expected = {"pair": conversing.number(USER), "chat": conversing.number(SAID), "answer": 0}
    for path, record in by_path.items():
        assert record["error"] is None, path
        whole = {name: math.floor(score) for name, score in record["scores"].items()}
        assert whole == expected, path
    alone = {**fields, "messages": SAID[:1], "scorers": {"pair": 1}}
    error = post(ours, "/generate", 400, **alone)["error"]["message"]
    assert "'pair' cannot read this conversation (it needs a message with the role" in error


def test_an_earlier_response_is_read(ours):
    def answer(**fields):
        request = {**ASKED, "guidance": {**ASKED["guidance"], "beta": 0}, "max_output_tokens": 8}
        return post(ours, "/v1/responses", **request, **fields)

    first = answer(input=USER)
    said = first["output"][0]["content"][0]["text"]
    second = answer(input="And?", previous_response_id=first["id"])
    history = [
        {"role": "user", "content": USER},
        {"role": "assistant", "content": said},
        {"role": "user", "content": "And?"},
    ]
    whole = answer(input=history)
    assert second["guidance"][0]["scores"] == pytest.approx(whole["guidance"][0]["scores"])
    assert answer(input="And?")["guidance"][0]["scores"] != second["guidance"][0]["scores"]
    error = post(ours, "/v1/responses", 400, **ASKED, input=USER, background=True)["error"]
    assert "background" in error["message"]


def generated(server):
    lines = server.http.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if "generation_tokens_total{" in line)


@pytest.mark.parametrize("stream", [False, True])
def test_a_template_that_refuses_is_a_400_before_anything_is_generated(ours, stream):
    before = generated(ours)
    strict = {**ASKED, "guidance": {"scorers": {"chatty": 1, "strict": 1}}}
    for path, fields in ROUTES.items():
        way = {} if path.endswith("batch") else {"stream": stream}
        error = post(ours, path, 400, **strict, **fields, **way)["error"]
        assert "no system turn here" in error["message"], path
        assert "'strict'" in error["message"]
    own = {"messages": SAID, "scorers": {"strict": 1}, "stream": stream}
    assert "no system turn" in post(ours, "/generate", 400, **own)["error"]["message"]
    search = {"method": "best_of_n", "n": 2}
    own = {"messages": SAID, "scorers": {"strict": 1}, "beta": 0, "search": search}
    assert "no system turn" in post(ours, "/generate", 400, **own)["error"]["message"]
    assert generated(ours) == before
    well = post(
        ours, "/v1/chat/completions", **strict, messages=SAID[1:], max_tokens=2
    )  # the control
    assert records(well)[0]["error"] is None
    assert generated(ours) > before


def test_the_bases_template_refuses_likewise(ours):
    for guidance in ({}, {"guidance": {"scorers": {"chatty": 1}}}):
        for path, fields in (
            ("/v1/chat/completions", {"messages": TWO}),
            ("/v1/messages", {"messages": TWO, "max_tokens": 2}),
            ("/v1/responses", {"input": TWO}),
            ("/v1/chat/completions/batch", {"messages": [TWO]}),
            ("/generate", {"messages": TWO}),
        ):
            extra = guidance if path != "/generate" else guidance.get("guidance", {})
            error = post(ours, path, 400, **fields, model="demo", **extra)["error"]
            assert "two user turns" in error["message"], path
            assert len(error["message"]) < 600


def test_the_upstream_server_reads_and_refuses_the_same(ours, scorers):
    named = [f"{name}={scorers / name},family=text" for name in ("chatty", "strict")]
    strict = {**ASKED, "guidance": {"scorers": {"strict": 1}}}
    alone = {"messages": SAID, "max_tokens": 12}
    developer = [{"role": "developer", "content": SYSTEM}, SAID[1]]

    async def ask():
        async with over(ours, scorer=named, tokenizer=str(scorers / "base")) as client:
            yield await client.post("/v1/chat/completions", json={**ASKED, **alone})
            fields = {"messages": developer, "max_tokens": 12}
            yield await client.post("/v1/chat/completions", json={**ASKED, **fields})
            yield await client.post("/v1/chat/completions", json={**strict, **alone})
            own = {**alone, "scorers": {"strict": 1}, "stream": True}
            yield await client.post("/generate", json=own)
            fields = {"messages": TWO, "scorers": {"chatty": 1}}
            yield await client.post("/generate", json=fields)

    async def collect():
        return [answer async for answer in ask()]

    same, by_developer, *refused, by_base = asyncio.run(collect())
    expected = records(post(ours, "/generate", **alone, temperature=0, **ASKED["guidance"]))[0]
    for answer in (same, by_developer):
        record = records(answer.json())[0]
        assert record["scores"] == pytest.approx(expected["scores"], abs=1e-4)
    for answer in refused:
        assert answer.status_code == 400
        assert "no system turn here" in answer.json()["error"]["message"]
    assert by_base.status_code == 400
    assert "two user turns" in by_base.json()["error"]["message"]


def test_token_ids_are_guided(ours):
    ids = post(ours, "/tokenize", prompt="The room was")["tokens"]
    sampling = {"temperature": 0, "max_tokens": 16}
    path = "/inference/v1/generate"
    [same] = post(ours, "/generate", prompt_token_ids=ids, **sampling, **SENTIMENT)["choices"]
    body = {"token_ids": ids, "sampling_params": sampling}
    [choice] = post(ours, path, **body, guidance=SENTIMENT)["choices"]
    assert choice["token_ids"] == same["token_ids"]
    assert choice["guidance"]["kl"] == pytest.approx(same["guidance"]["kl"], abs=1e-4)
    [by_name] = post(ours, path, **body, model="demo@warm")["choices"]
    assert by_name["token_ids"] == choice["token_ids"]
    [bare] = post(ours, path, **body)["choices"]
    assert "guidance" not in bare
    assert bare["token_ids"] != choice["token_ids"]
    principles = {"principles": [{"text": "Write a kind review.", "weight": 1}], "beta": 2}
    [in_words] = post(ours, path, **body, guidance=principles)["choices"]
    [same] = post(ours, "/generate", prompt_token_ids=ids, **sampling, **principles)["choices"]
    assert in_words["token_ids"] == same["token_ids"] != bare["token_ids"]
    assert set(in_words["guidance"]["kl_parts"]) == {"principle 1"}
    several = {"temperature": 1, "seed": 1, "max_tokens": 8, "n": 3}
    body = {"token_ids": ids, "sampling_params": several, "guidance": SENTIMENT}
    for choice in post(ours, path, **body)["choices"]:
        assert choice["guidance"]["steps"] > 0
    streamed = ours.http.post(path, json={**body, "stream": True})
    events = [line.removeprefix("data: ") for line in streamed.text.split("\n\n") if line]
    assert events.pop() == "[DONE]"
    choices = [c for event in events for c in json.loads(event).get("choices", ())]
    ended = [c for c in choices if c.get("finish_reason")]
    assert sorted(c["index"] for c in ended) == [0, 1, 2]
    assert all(c["guidance"]["steps"] > 0 for c in ended)


def test_token_ids_are_capped_and_guarded(ours):
    path = "/inference/v1/generate"
    for sampling in (
        {"n": 129},
        {"n": "2"},
        {"n": 2.0},
        {"logprobs": 21},
        {"logprobs": -1},
        {"stop": ["x"] * 5},
        {"extra_args": {"trimtab_record": "mine"}},
        {"extra_args": {"trimtab_beta": 1, "trimtab_versions": "sentiment@1"}},
        {"extra_args": {"trimtab_beta": "strong"}},
    ):
        post(ours, path, 400, token_ids=[5], sampling_params={"max_tokens": 2, **sampling})
    sampling = {"max_tokens": 2, "extra_args": {"trimtab_scorers": "unheard-of=1"}}
    post(ours, path, 404, token_ids=[5], sampling_params=sampling)


@pytest.mark.scorecard(letter="F")
def test_no_engine_outlives_its_server(ours):
    """The last of this server."""
    endings.by_kill(ours)
