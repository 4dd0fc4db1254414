"""Parts that need no engine: slow bodies, websockets, and a canary that must complain."""

import asyncio
import json
import warnings
from types import SimpleNamespace

import pytest

from trimtab.engine import GenerationRequest, Piece, Version
from trimtab.errors import InvalidGuidance, NotReady
from trimtab.scoring.text import PromptContext
from trimtab_server import app, limits, readiness
from trimtab_server.auth import ApiKeys
from trimtab_server.limits import BodyLimit
from trimtab_server.routes import status
from trimtab_server.state import State

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # vLLM's import warns of its own code
    from vllm import SamplingParams

    from trimtab.adapters.vllm import GuidanceProcessor
    from trimtab.adapters.vllm.search import carried, read_context
    from trimtab_server.vllm import rpc
    from trimtab_server.vllm.middleware import GuidanceMiddleware
    from trimtab_server.vllm.records import EXCHANGE


class Silent:
    """An engine that does nothing."""

    model, greeting, patience = "m", GenerationRequest(), 1.0

    def problem(self):
        return None


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


async def test_bodies_take_no_more_than_so_much_together(monkeypatch):
    """Slow ones hold what has come of them; once they are gone, there is room again."""
    monkeypatch.setattr(limits, "ALL_BODIES_BYTES", 25)
    go_on = asyncio.Event()

    async def slow():
        await go_on.wait()
        return {"type": "http.disconnect"}

    def sending(*then):
        pieces = [{"type": "http.request", "body": b"1234567890", "more_body": True}]

        async def receive():
            return pieces.pop() if pieces else await then[0]()

        return receive

    async def whole():
        return {"type": "http.request", "body": b"", "more_body": False}

    served = []

    async def serves(scope, receive, send):
        served.append((await receive())["body"])

    app = BodyLimit(serves, max_bytes=10)
    tasks = [asyncio.create_task(answer(app, {"type": "http"}, sending(slow))) for _ in range(2)]
    await asyncio.sleep(0)
    (start, _) = await answer(app, {"type": "http"}, sending(whole))
    assert start["status"] == 429
    tasks[0].cancel()
    go_on.set()
    assert await asyncio.gather(*tasks, return_exceptions=True) != []
    assert app.total == 0
    assert await answer(app, {"type": "http"}, sending(whole)) == []
    assert served == [b"1234567890"]
    assert app.total == 0


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
async def test_readiness_fails_when_guidance_does_nothing(record, complaint):
    class Recording(Silent):
        async def generate(self, request):
            yield Piece(0, "x", [1], "length", record)

    state = State(Recording(), {"a": Version("a", 1, "head")}, None)
    assert state.complaint("a") is not None
    await readiness.check_all(state)
    problem = state.complaint("a")
    assert problem == complaint if complaint is None else complaint in problem


async def test_readiness_survives_a_broken_engine():
    state = State(Silent(), {"a": Version("a", 1, "head")}, None)
    await readiness.check_all(state)
    assert "failed its readiness check" in state.complaint("a")


async def test_a_failed_check_is_made_again_later(monkeypatch):
    """And a scorer whose check passed is left alone until it fails."""
    calls = []

    async def complaint(_, name, *rest):
        calls.append(name)
        return "is broken" if name == "bad" else None

    monkeypatch.setattr(readiness, "complaint", complaint)
    names = ("good", "bad")
    state = State(Silent(), {name: Version(name, 1, "head") for name in names}, None)
    statuses = [{"name": name, "faults": 0, "suspended": False} for name in names]
    await readiness.check(state, statuses)
    await readiness.check(state, statuses)
    assert calls == ["good", "bad"]
    monkeypatch.setattr(readiness, "AGAIN_SECONDS", 0.0)
    await readiness.check(state, statuses)
    assert calls == ["good", "bad", "bad"]
    statuses[0]["faults"] = 1
    await readiness.check(state, statuses)
    assert calls[3:] == ["good", "bad"]


async def test_a_scorer_with_a_low_prefix_auc_is_warned_of(caplog, monkeypatch, capsys):
    """Named, with its value and what to do; unknown and good ones are passed over."""
    aucs = {"weak": 0.55, "fair": 0.6, "unknown": None, "worst": 0.4}

    class Listing(Silent):
        async def scorers(self, seconds):
            return [{"name": name, "prefix_auc": auc} for name, auc in aucs.items()]

    async def check_all(state):
        state.complaints = dict.fromkeys(state.scorers)

    monkeypatch.setattr(readiness, "check_all", check_all)
    state = State(Listing(), {name: Version(name, 1, "head") for name in aucs}, None)
    await app._check_and_announce(state, "http://here")
    assert "ready: m at http://here" in capsys.readouterr().out
    messages = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [line.split(",")[0] for line in messages] == [
        "scorer 'weak' has a prefix-AUC of 0.550",
        "scorer 'worst' has a prefix-AUC of 0.400",
    ]
    assert all("trimtab train" in line for line in messages)


@pytest.mark.parametrize("reads", ["chat", "pair", "answer", "text", "tokens"])
async def test_a_conversation_goes_to_scorers_that_read_it(monkeypatch, reads):
    """Through the middleware, and from there in extra arguments, as the worker reads them."""
    extra_args = {}

    async def route(scope, receive, send):
        extra_args.update(EXCHANGE.get().carried)
        start = {"type": "http.response.start", "status": 200, "headers": []}
        await send({**start, "headers": [(b"content-type", b"text/event-stream")]})
        await send({"type": "http.response.body", "body": b""})

    messages = [
        {"role": "system", "content": "Be kind."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "A "}, {"type": "text", "text": "b"}],
        },
    ]
    body = json.dumps({"messages": messages, "guidance": {"scorers": {"s": 1.0}}}).encode()

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    served = {"s": Version("s", 3, "text", reads)}
    scope = {"type": "http", "path": "/v1/chat/completions"}
    scope["headers"] = [(b"content-type", b"application/json")]
    scope["app"] = SimpleNamespace(
        state=SimpleNamespace(trimtab=SimpleNamespace(engine=SimpleNamespace(client=None)))
    )

    async def call(engine, method, *arguments):
        return [[]]  # every template reads it

    monkeypatch.setattr(rpc, "call", call)
    await answer(GuidanceMiddleware(route, served, None), scope, receive)
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "A b"}]
    assert read_context(extra_args) == PromptContext(
        turns=turns if reads in ("chat", "pair") else None
    )
    assert extra_args["trimtab_versions"] == "s@3"


@pytest.mark.parametrize(
    "value", ["", "{", "[]", "[1]", "[-1, null]", "[true, null]", '["3", null]', "[1, [2]]", "7"]
)
def test_a_prompts_context_is_checked_at_the_front(value):
    extra = {"trimtab_beta": 1.0, "trimtab_prompt": value}
    with pytest.raises(InvalidGuidance, match="set by the server"):
        GuidanceProcessor.validate_params(SamplingParams(extra_args=extra))
    known = PromptContext(4, [{"role": "user", "content": "ü"}])
    assert read_context(carried(known)) == known
    GuidanceProcessor.validate_params(SamplingParams(extra_args={**extra, **carried(known)}))


async def test_a_suspended_scorer_takes_the_server_out_of_service(monkeypatch):
    """And is not checked, which would wait for nothing."""
    statuses = [{"name": "slow", "faults": 3, "suspended": True}]

    class Listing(Silent):
        async def scorers(self, seconds):
            return statuses

    state = State(Listing(), {"slow": Version("slow", 1, "function")}, None)
    state.complaints["slow"], state.faults["slow"] = None, 0
    app = SimpleNamespace(state=SimpleNamespace(trimtab=state))
    request = SimpleNamespace(app=app, scope={})

    async def well(*_):
        return None

    monkeypatch.setattr(readiness, "complaint", well)
    with pytest.raises(NotReady, match="scorer 'slow' is suspended"):
        await status.ready(request)
    assert state.faults["slow"] == 0
    statuses[0]["suspended"] = False  # an hour later, it is checked again
    assert await status.ready(request) == {"status": "ready"}
    assert state.faults["slow"] == 3


def test_a_request_that_cannot_be_taken_in_is_a_fault_of_its_own(monkeypatch):
    def exhausted(_):
        raise MemoryError

    processor = GuidanceProcessor.__new__(GuidanceProcessor)
    processor.leads, processor.default_scorers = True, None
    processor.guide = SimpleNamespace(
        registry=SimpleNamespace(at=lambda _: {"a": SimpleNamespace(family="head")})
    )
    monkeypatch.setattr("trimtab.adapters.vllm.processor.read_context", exhausted)
    row = processor._row(SamplingParams(extra_args={"trimtab_beta": 1.0}), 3)
    assert row.fault.message == "MemoryError in guidance"
