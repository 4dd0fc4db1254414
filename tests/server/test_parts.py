"""Parts that need no engine: slow bodies, websockets, and a canary that must complain."""

import asyncio
import warnings
from types import SimpleNamespace

import pytest

from trimtab_server.auth import ApiKeys
from trimtab_server.limits import BodyLimit
from trimtab_server.state import State

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what vLLM's import brings about is not ours to mend
    from trimtab_server import app, canary, prompts
    from trimtab_server.guided import EXCHANGE


async def never(scope, receive, send):
    raise AssertionError("the request must not come this far")


async def answer(app, scope, receive):
    sent = []

    async def send(message):
        sent.append(message)

    await app({"headers": [], "path": "/generate", "method": "POST", **scope}, receive, send)
    return sent


async def test_a_slow_body_is_refused():
    async def receive():
        await asyncio.sleep(10)

    app = BodyLimit(never, max_bytes=10, seconds=0.05)
    assert (await answer(app, {"type": "http"}, receive))[0]["status"] == 408


async def test_a_body_without_declared_length_is_measured():
    async def receive():
        return {"type": "http.request", "body": b"12345678", "more_body": True}

    app = BodyLimit(never, max_bytes=10)
    assert (await answer(app, {"type": "http"}, receive))[0]["status"] == 413


@pytest.mark.parametrize("declared", [b"11", b"1" * 5000, b"-1", b"x"])
async def test_a_declared_length_is_believed_before_reading(declared):
    app = BodyLimit(never, max_bytes=10)
    scope = {"type": "http", "headers": [(b"content-length", declared)]}
    assert (await answer(app, scope, never))[0]["status"] == 413


async def test_a_client_that_leaves_before_its_body_is_dropped():
    async def receive():
        return {"type": "http.disconnect"}

    assert await answer(BodyLimit(never, max_bytes=10), {"type": "http"}, receive) == []


async def test_websockets_need_a_key():
    (closed,) = await answer(ApiKeys(never, ["key"]), {"type": "websocket"}, never)
    assert (closed["type"], closed["code"]) == ("websocket.close", 1008)


async def test_two_authorization_headers_are_none():
    headers = [(b"authorization", b"Bearer key"), (b"authorization", b"Bearer other")]
    sent = await answer(ApiKeys(never, ["key"]), {"type": "http", "headers": headers}, never)
    assert sent[0]["status"] == 401


@pytest.mark.parametrize(
    ("record", "complaint"),
    [
        (None, "kept no record"),
        ({"kl": 0.0, "scored_steps": 4}, "did not change the logits"),
        ({"kl": 0.5, "scored_steps": 0}, "did not change the logits"),
        ({"kl": 0.5, "scored_steps": 4}, None),
    ],
)
async def test_the_canary_complains_when_guidance_does_nothing(monkeypatch, record, complaint):
    async def text(renderer, prompt):
        return prompt

    async def generate(prompt, params, request_id):
        EXCHANGE.get().calls.append({0: record})
        yield None

    monkeypatch.setattr(prompts, "text", text)
    state = State(SimpleNamespace(generate=generate), None, "demo", ["a"], None)
    assert state.complaint("a") is not None
    await canary.sing(state)
    told = state.complaint("a")
    assert told == complaint if complaint is None else complaint in told


async def test_the_canary_survives_a_broken_engine():
    state = State(None, None, "demo", ["a"], None)
    await canary.sing(state)
    assert "failed its canary request" in state.complaint("a")


async def test_a_scorer_with_a_low_prefix_auc_is_warned_of(caplog, monkeypatch, capsys):
    """Named, with its value and what to do; unknown and good ones are passed over."""
    aucs = {"weak": 0.55, "fair": 0.6, "unknown": None, "worst": 0.4}

    async def collective_rpc(method):
        assert method == "trimtab_scorers"
        return [[{"name": name, "prefix_auc": auc} for name, auc in aucs.items()]]

    async def sing(state):
        state.complaints = dict.fromkeys(state.scorers)

    monkeypatch.setattr(canary, "sing", sing)
    state = State(SimpleNamespace(collective_rpc=collective_rpc), None, "m", list(aucs), None)
    await app._begin(state, "http://here")
    assert "ready: m at http://here" in capsys.readouterr().out
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [line.split(",")[0] for line in told] == [
        "scorer 'weak' has a prefix-AUC of 0.550",
        "scorer 'worst' has a prefix-AUC of 0.400",
    ]
    assert all("trimtab train" in line for line in told)
