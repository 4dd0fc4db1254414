"""One HTTP suite over every engine: in memory, over an upstream, and over vLLM.

The same requests get the same kind of answers, and the same faults the same errors.
"""

import json
from dataclasses import dataclass

import httpx
import pytest
from conftest import KEY
from upstream_fake import Fake

from faulty import FAILS_AT
from trimtab.adapters.memory import MemoryEngine
from trimtab.config import GuidanceConfig
from trimtab.description import describe
from trimtab.engine import GenerationRequest, Sampling
from trimtab.guide import Guide
from trimtab.loading import load_scorers
from trimtab.params import GuidanceParams
from trimtab_server import app, readiness, settings
from trimtab_server.settings import Settings
from trimtab_server.sizes import Bounds
from trimtab_server.state import State
from trimtab_server.upstream import build

LONG = 2 * FAILS_AT


@dataclass
class Served:
    """A server, a scorer of its that steers, and one that fails once an answer is long."""

    http: httpx.AsyncClient
    steers: str
    fails: str
    prompt: str
    model: str

    async def generate(self, **fields):
        answer = await self.http.post("/generate", json={"prompt": self.prompt, **fields})
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def events(self, path, **fields):
        answer = await self.http.post(path, json={**fields, "stream": True})
        assert answer.status_code == 200, answer.text
        events = [e.partition("data: ")[2] for e in answer.text.strip().split("\n\n")]
        assert events.pop() == "[DONE]"
        return [json.loads(event) for event in events]


def likes_vowels(ids):
    return float(ids[-1] in {2, 6, 10, 16, 22})


def fails(ids):
    if len(ids) >= FAILS_AT:
        raise RuntimeError("planted, with a secret: /etc/passwd")
    return float(ids[-1] % 2)


def memory():
    names = {"good": "likes_vowels", "late": "fails"}
    scorers = {n: {"path": f"{__name__}:{f}", "family": "function"} for n, f in names.items()}
    chosen = Settings(model="m", scorer=scorers, api_key=[KEY])
    config = GuidanceConfig.model_validate(chosen.guidance())
    guide = Guide(load_scorers(config, max_length=512, vocab_size=70))
    state = State(MemoryEngine(guide), app.versions(describe(guide), chosen), None)
    return app.build(state, chosen, Bounds.of(512, 1, 2**20), 64)


def upstream():
    options = {
        "upstream": "http://upstream/v1",
        "upstream_model": "m",
        "upstream_end": ["<end>"],
        "api_key": [KEY],
        "scorer": [
            "good=upstream_fake:likes_good,family=function,reads=text",
            "late=upstream_fake:fails_late,family=function,reads=text",
        ],
    }
    return build(settings.load(options), Fake().transport())


@pytest.fixture(params=["memory", "upstream", pytest.param("vllm", marks=pytest.mark.engine)])
async def served(request):
    headers = {"Authorization": f"Bearer {KEY}"}
    if request.param == "vllm":
        url = request.getfixturevalue("server").url
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60) as http:
            yield Served(http, "sentiment", "raises", "The room was", "demo")
        return
    made = memory() if request.param == "memory" else upstream()
    await readiness.check_all(made.state.trimtab)
    transport = httpx.ASGITransport(made, raise_app_exceptions=False)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://here", headers=headers
    ) as http:
        model = made.state.trimtab.model
        yield Served(http, "good", "late", "Say it:", model)
    await made.state.trimtab.engine.close()


@pytest.mark.parametrize(
    ("body", "status", "kind", "param"),
    [
        ({"scorers": {"nobody": 1}}, 404, "not_found_error", "scorers"),
        ({"beta": "strong"}, 400, "invalid_request_error", "beta"),
        ({"beta": 1e400}, 400, "invalid_request_error", None),
        ({"k": 0}, 400, "invalid_request_error", "k"),
        ({"scorers": [1]}, 400, "invalid_request_error", "scorers"),
        ({"frobnicate": 1}, 400, "invalid_request_error", None),
        ({"prompt": None}, 400, "invalid_request_error", None),
        ({"prompt": ""}, 400, "invalid_request_error", "prompt"),
        ({"prompt": [1]}, 400, "invalid_request_error", "prompt"),
        ({"messages": [{"role": "user", "content": "x"}]}, 400, "invalid_request_error", None),
        ({"prompt": None, "messages": [1]}, 400, "invalid_request_error", "messages"),
        ({"n": 100}, 400, "invalid_request_error", "n"),
        ({"n": "2"}, 400, "invalid_request_error", "n"),
        ({"max_tokens": 0}, 400, "invalid_request_error", "max_tokens"),
        ({"temperature": -1}, 400, "invalid_request_error", "temperature"),
        ({"search": {"method": "magic"}}, 400, "invalid_request_error", None),
        ({"kl_budget": -1.0}, 400, "invalid_request_error", "kl_budget"),
        ({"floors": {"nobody": 1.0}}, 404, "not_found_error", "floors"),
    ],
    ids=json.dumps,
)
async def test_the_same_faults_have_the_same_errors(served, body, status, kind, param):
    fields = {"prompt": served.prompt, **body}
    content = json.dumps({k: v for k, v in fields.items() if v is not None})
    answer = await served.http.post(
        "/generate", content=content, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == kind
    assert param is None or error["param"] == param
    assert "Traceback" not in answer.text


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b'{"n": 1, "n": 2}', b"7"])
async def test_what_is_no_body_is_refused(served, content):
    headers = {"Content-Type": "application/json"}
    for path in ("/generate", "/v1/completions", "/v1/chat/completions"):
        answer = await served.http.post(path, content=content, headers=headers)
        assert answer.status_code == 400, (path, answer.text)
        assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_what_needs_a_key_needs_a_key(served):
    for path in ("/generate", "/v1/scorers", "/metrics", "/v1/models"):
        answer = await served.http.get(path, headers={"Authorization": "Bearer other"})
        assert answer.status_code == 401
        assert answer.json()["error"]["type"] == "authentication_error"
    assert (await served.http.get("/health", headers={"Authorization": ""})).status_code == 200


async def test_paths_and_methods_that_do_not_exist(served):
    assert (await served.http.get("/nowhere")).status_code in (403, 404)
    wrong = await served.http.get("/generate")
    assert wrong.status_code == 405
    loading = await served.http.post("/v1/scorers", json={"name": "x", "path": "x"})
    assert loading.status_code == 403
    assert loading.json()["error"]["type"] == "permission_error"


async def test_an_answer_and_its_stream_are_the_same(served):
    fields = {"prompt": served.prompt, "scorers": {served.steers: 1.0}, "beta": 2, "seed": 3}
    fields |= {"max_tokens": 12, "n": 2}
    whole = await served.generate(**fields)
    assert set(whole) == {"id", "model", "choices", "usage"}
    assert [choice["index"] for choice in whole["choices"]] == [0, 1]
    *events, last = await served.events("/generate", **fields)
    assert last["choices"] == []
    assert last["usage"] == whole["usage"]
    for choice in whole["choices"]:
        pieces = [c for e in events for c in e["choices"] if c["index"] == choice["index"]]
        assert "".join(piece["text"] for piece in pieces) == choice["text"]
        assert [t for piece in pieces for t in piece["token_ids"]] == choice["token_ids"]
        assert [p["finish_reason"] for p in pieces[:-1]] == [None] * (len(pieces) - 1)
        assert pieces[-1]["finish_reason"] == choice["finish_reason"]
        assert pieces[-1]["guidance"]["kl"] == pytest.approx(choice["guidance"]["kl"], abs=1e-4)
        assert "guidance" not in pieces[0] or len(pieces) == 1
    assert whole["usage"]["completion_tokens"] == sum(
        len(choice["token_ids"]) for choice in whole["choices"]
    )


async def test_a_seed_makes_an_answer_again(served):
    fields = {"scorers": {served.steers: 1.0}, "beta": 2, "seed": 5, "max_tokens": 10}
    first, second = [await served.generate(**fields) for _ in range(2)]
    assert first["choices"][0]["token_ids"] == second["choices"][0]["token_ids"]
    assert first["id"] != second["id"]


async def test_strength_and_sign_steer(served):
    fields = {"scorers": {served.steers: 1.0}, "max_tokens": 12, "n": 8, "seed": 1}
    means = []
    for beta in (-6, 0, 6):
        answer = await served.generate(**fields, beta=beta)
        records = [choice["guidance"] for choice in answer["choices"]]
        assert all(record["error"] is None for record in records)
        assert (sum(record["kl"] for record in records) > 0) == (beta != 0)
        scored = [record["scores"].get(served.steers, 0.0) for record in records]
        means.append(sum(scored) / len(scored))
    assert means[0] <= means[2]
    assert means[0] < max(means)


async def test_a_scorer_that_fails_ends_its_request_alone(served):
    fields = {
        "scorers": {served.fails: 1.0},
        "max_tokens": LONG,
        "prompt": served.prompt,
        "seed": 2,
    }
    failed = await served.http.post("/generate", json=fields)
    assert failed.status_code == 500, failed.text
    assert failed.json()["error"]["type"] == "scorer_error"
    assert served.fails in failed.json()["error"]["message"]
    assert "secret" not in failed.text
    *_, last = await served.events("/generate", **fields)
    assert last["error"]["type"] == "scorer_error"
    spared = await served.generate(**fields, on_error="unguided")
    assert spared["choices"][0]["guidance"]["error"]["scorer"] == served.fails
    assert (await served.generate(scorers={served.steers: 1.0}, max_tokens=4))["choices"]


async def test_chat_and_completions_take_guidance(served):
    guidance = {"scorers": {served.steers: 1.0}, "beta": 2}
    chat = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 6, "seed": 1}
    if served.model == "m":  # this upstream serves completions, which have no chat template
        chat, path = {"prompt": served.prompt, "max_tokens": 6, "seed": 1}, "/v1/completions"
    else:
        path = "/v1/chat/completions"
    whole = (await served.http.post(path, json={**chat, "guidance": guidance})).json()
    assert whole["choices"][0]["guidance"]["steps"] > 0
    assert whole["object"].startswith(("chat.completion", "text_completion"))
    base = (await served.http.post(path, json=chat)).json()
    assert base["choices"][0].get("guidance") is None
    events = await served.events(path, **chat, guidance=guidance)
    ended = [c for e in events for c in e["choices"] if c["finish_reason"] is not None]
    assert ended[0]["guidance"]["kl"] == pytest.approx(
        whole["choices"][0]["guidance"]["kl"], abs=1e-4
    )
    unknown = await served.http.post(path, json={**chat, "guidance": {"scorers": {"nobody": 1}}})
    assert unknown.status_code == 404
    model = await served.http.post(path, json={**chat, "model": "another"})
    assert model.status_code == 404


async def test_several_prompts_are_several_choices(served):
    body = {"prompt": [served.prompt, "It is"], "max_tokens": 4, "n": 2, "seed": 1}
    body["guidance"] = {"scorers": {served.steers: 1.0}}
    answer = (await served.http.post("/v1/completions", json=body)).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert all(choice["guidance"] is not None for choice in answer["choices"])
    events = await served.events("/v1/completions", **body)
    assert {c["index"] for e in events for c in e["choices"]} == {0, 1, 2, 3}


async def test_what_is_served_is_listed(served):
    assert (await served.http.get("/ready")).json() == {"status": "ready"}
    listed = {s["id"]: s for s in (await served.http.get("/v1/scorers")).json()["data"]}
    assert {served.steers, served.fails} <= set(listed)
    one = listed[served.steers]
    assert one["healthy"]
    assert {"family", "reads", "objective", "faults", "overruns", "suspended", "version"} <= set(
        one
    )
    models = (await served.http.get("/v1/models")).json()["data"]
    presets = {"demo": ["demo@warm"]}  # of the session's server
    assert [model["id"] for model in models] == [served.model, *presets.get(served.model, ())]
    assert "trimtab_steps" in (await served.http.get("/metrics")).text


async def test_a_request_keeps_a_scorer_that_is_unloaded_meanwhile():
    """Over the engines without vLLM; test_loading has it over vLLM."""
    for made in (memory(), upstream()):
        engine = made.state.trimtab.engine
        version = made.state.trimtab.scorers["good"]
        request = GenerationRequest(
            id="r",
            text="Say it:",
            sampling=Sampling(max_tokens=6, seed=4),
            guidance=GuidanceParams(scorers={"good": 1.0}),
            versions=[version],
        )
        pieces = engine.generate(request)
        await anext(pieces)
        await engine.serve("good", None)
        last = [piece async for piece in pieces][-1]
        assert last.finish_reason is not None
        assert last.record["error"] is None
        assert "good" in last.record["scores"]
        await engine.close()


async def test_a_stream_carries_its_trace(served):
    fields = {"prompt": served.prompt, "scorers": {served.steers: 1.0}, "beta": 3, "seed": 2}
    fields |= {"max_tokens": 10, "trace": True, "n": 2, "mass": 0.7}
    *events, _ = await served.events("/generate", **fields)
    pieces = [choice for event in events for choice in event["choices"]]
    for index in (0, 1):
        own = [piece for piece in pieces if piece["index"] == index]
        steps = [step for piece in own for step in piece.get("trace") or ()]
        assert steps == own[-1]["guidance"]["trace"]
        ids = [token for piece in own for token in piece["token_ids"]]
        assert [step["token"] for step in steps] == ids
        assert sum(step["kl"] for step in steps) == pytest.approx(own[-1]["guidance"]["kl"])
        for step in steps:
            assert len(step["texts"]) == len(step["candidates"]) == len(step["logprobs"])
            assert len(step["tail_texts"]) == len(step["tail"]) == len(step["tail_logprobs"])
            assert not {*step["tail"]} & {*step["candidates"]}
            assert step["logprobs"] + step["tail_logprobs"] == sorted(
                step["logprobs"] + step["tail_logprobs"], reverse=True
            )
    assert any(len(step["candidates"]) > 1 for step in steps)
    untraced = await served.events("/generate", **{**fields, "trace": False})
    assert not any("trace" in choice for event in untraced for choice in event["choices"])


async def test_an_answer_is_continued(served):
    """What follows a part of a greedy answer is the rest of it, with the same scores."""
    fields = {"scorers": {served.steers: 1.0}, "beta": 3, "temperature": 0}
    [whole] = (await served.generate(**fields, max_tokens=8))["choices"]
    body = {"prompt": served.prompt, **fields, "answer_token_ids": whole["token_ids"][:3]}
    answer = await served.http.post("/generate", json={**body, "max_tokens": 5})
    if served.model == "m":  # an upstream without a tokenizer: its tokens have no ids of their own
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "answer_token_ids"
        return
    [rest] = answer.json()["choices"]
    assert rest["token_ids"] == whole["token_ids"][3:]
    assert whole["text"].endswith(rest["text"])
    assert rest["guidance"]["scores"] == pytest.approx(whole["guidance"]["scores"], abs=1e-3)
    assert rest["guidance"]["steps"] == len(rest["token_ids"])
    for ids in ([], [-1], [2**31], ["1"], [2**31 - 1]):
        refused = await served.http.post("/generate", json={**body, "answer_token_ids": ids})
        assert refused.status_code == 400, ids
    search = {"method": "best_of_n", "n": 2}
    refused = await served.http.post("/generate", json={**body, "temperature": 1, "search": search})
    assert refused.json()["error"]["param"] == "answer_token_ids"
