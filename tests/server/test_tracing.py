"""Traces: one span a request and one a guided choice, in the client's own trace, without text."""

import json

import pytest
from conftest import KEY
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from covered import client
from test_engines import LONG, memory, upstream
from test_rpc import Engine, RequestOutputKind, SamplingParams, guided
from trimtab.errors import StartError
from trimtab.params import GuidanceParams
from trimtab.xargs import to_xargs
from trimtab_server import readiness, tracing

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HEADERS = {
    "Authorization": f"Bearer {KEY}",
    "traceparent": f"00-{TRACE}-{PARENT}-01",
    "tracestate": "vendor=1",
}
MARK = "zebracrossing"
ENGINES = {"memory": memory, "upstream": upstream}


@pytest.fixture
def spans(monkeypatch):
    """The spans that have ended since the last call."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing.TRACING, "tracer", provider.get_tracer("test"))

    def ended():
        spans = exporter.get_finished_spans()
        exporter.clear()
        return spans

    yield ended
    provider.shutdown()


@pytest.fixture(params=ENGINES)
async def made(request):
    made = ENGINES[request.param]()
    await readiness.check_all(made.state.trimtab)
    yield made
    await made.state.trimtab.engine.close()


async def post(made, path, **body):
    async with client(made) as http:
        return await http.post(path, json={"max_tokens": 4, "seed": 1, **body}, headers=HEADERS)


async def test_a_request_continues_the_clients_trace(made, spans):
    body = {"prompt": f"Say it: {MARK}", "scorers": {"good": 1.0}, "beta": 2.0, "n": 2}
    answer = await post(made, "/generate", **body)
    records = [choice["guidance"] for choice in answer.json()["choices"]]
    *choices, request = spans()
    assert request.name == "POST /generate"
    assert request.kind is SpanKind.SERVER
    assert f"{request.context.trace_id:032x}" == TRACE
    assert f"{request.parent.span_id:016x}" == PARENT
    assert request.context.trace_state.get("vendor") == "1"
    assert request.attributes["http.response.status_code"] == 200
    assert [span.name for span in choices] == ["trimtab.choice"] * 2
    for span, record in zip(choices, records, strict=True):
        assert span.parent.span_id == request.context.span_id
        assert request.start_time <= span.start_time <= span.end_time
        assert span.attributes["trimtab.beta"] == 2.0
        assert span.attributes["trimtab.scorers"] == ("good",)
        for name in tracing.COUNTS:
            assert span.attributes[f"trimtab.{name}"] == record[name]
        assert 0 < span.attributes["trimtab.scorer_seconds.good"] < 60
        assert span.attributes["trimtab.score.good"] == record["scores"]["good"]
    shown = json.dumps([span.to_json() for span in (request, *choices)])
    assert MARK not in shown
    assert KEY not in shown
    assert tracing.SECONDS not in answer.text


async def test_streams_and_openai_routes_too(made, spans):
    guided = {"prompt": "Say it:", "guidance": {"scorers": {"good": 1.0}}}
    await post(made, "/v1/completions", stream=True, **guided)
    choice, request = spans()
    assert (choice.name, request.name) == ("trimtab.choice", "POST /v1/completions")
    assert choice.attributes["trimtab.steps"] > 0
    await post(made, "/v1/completions", prompt="Say it:")
    assert [span.name for span in spans()] == ["POST /v1/completions"]  # the base: no choice


async def test_a_budget_shows_the_strength_that_it_set(spans):
    made = memory()
    answer = await post(made, "/generate", prompt="the", scorers={"good": 1.0}, kl_budget=1.0)
    record = answer.json()["choices"][0]["guidance"]
    choice, _ = spans()
    assert choice.attributes["trimtab.kl_budget"] == 1.0
    assert choice.attributes["trimtab.beta"] == record["beta"]["mean"]
    await made.state.trimtab.engine.close()


async def test_refused_and_failed_requests(made, spans):
    await post(made, "/generate", prompt="Say it:", scorers={MARK: 1.0})
    [request] = spans()
    assert request.attributes["http.response.status_code"] == 404
    assert request.status.status_code is StatusCode.UNSET
    await post(made, f"/{MARK}")
    [request] = spans()
    assert (request.name, request.attributes["http.route"]) == ("POST -", "-")


@pytest.mark.parametrize("on_error", ["unguided", "fail"])
async def test_a_fault_is_an_error_of_its_span(spans, on_error):
    made = memory()
    body = {"prompt": "the", "scorers": {"late": 1.0}, "max_tokens": LONG, "on_error": on_error}
    answer = await post(made, "/generate", **body)
    *choices, request = spans()
    failed = on_error == "fail"
    assert answer.status_code == (500 if failed else 200)
    assert request.status.status_code is (StatusCode.ERROR if failed else StatusCode.UNSET)
    assert len(choices) == (0 if failed else 1)  # there is no record of what has failed
    for choice in choices:
        assert choice.status.status_code is StatusCode.ERROR
        assert choice.attributes["trimtab.fault.scorer"] == "late"
        assert "secret" not in choice.to_json()
    await made.state.trimtab.engine.close()


RECORD = {
    **dict.fromkeys(tracing.COUNTS, 1),
    "scores": {"good": 0.5},
    "error": None,
    tracing.SECONDS: {"good": 0.25},
}


class Base(Engine):
    """A vLLM engine client that notes the trace headers of its call."""

    async def generate(self, prompt, params, request_id, trace_headers=None):
        self.sent = trace_headers
        async for output in super().generate(prompt, params, request_id):
            yield output


class Traced(guided.Recording, Base):
    """The same, under the mixin that serves."""


@pytest.mark.parametrize("timed", [False, True])
async def test_a_call_of_vllms_engine(spans, timed):
    """On vLLM's own routes its end is the choice's; on ours, the route takes the record's time."""
    engine = Traced([[[dict(RECORD)]]])
    exchange = guided.Exchange(timed=timed)
    guided.EXCHANGE.set(exchange)
    params = SamplingParams(
        output_kind=RequestOutputKind.DELTA, extra_args=to_xargs(GuidanceParams(beta=3.0))
    )
    with tracing.TRACING.tracer.start_as_current_span("POST") as parent:
        async for _ in engine.generate("x", params, "id", trace_headers={"traceparent": "theirs"}):
            pass
    context = parent.get_span_context()
    assert engine.sent["traceparent"].split("-")[1:3] == [
        f"{context.trace_id:032x}",
        f"{context.span_id:016x}",
    ]
    [(_, method, _, arguments, _)] = engine.calls
    assert (method, arguments[-1]) == ("trimtab_record", True)
    *choices, _ = spans()
    assert len(choices) == (0 if timed else 1)
    assert (tracing.SECONDS in exchange.record(0, 0)) == timed
    for span in choices:
        assert span.parent.span_id == context.span_id
        assert span.attributes["trimtab.beta"] == 3.0
        assert span.attributes["trimtab.scorer_seconds.good"] == 0.25


async def test_a_call_of_vllms_engine_without_traces():
    record = {name: value for name, value in RECORD.items() if name != tracing.SECONDS}
    engine = Traced([[[record]]])
    guided.EXCHANGE.set(guided.Exchange())
    params = SamplingParams(extra_args=to_xargs(GuidanceParams(beta=3.0)))
    async for _ in engine.generate("x", params, "id"):
        pass
    assert engine.sent is None
    assert engine.calls[0][3][-1] is False


async def test_without_an_endpoint_nothing_is_recorded(made):
    assert not tracing.on()
    answer = await post(made, "/generate", prompt="Say it:", scorers={"good": 1.0})
    assert answer.status_code == 200
    assert tracing.headers() is None
    assert tracing.SECONDS not in answer.text


def test_an_endpoint_needs_the_sdk(monkeypatch):
    monkeypatch.setattr(tracing.TRACING, "tracer", None)
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(StartError, match=r"trimtab\[otel\]"):
        tracing.export("http://localhost:4317")
