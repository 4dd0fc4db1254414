"""What an operator reads from /metrics: all series from the start, and the scorers' numbers."""

import asyncio
import re
from pathlib import Path

import pytest
from conftest import KEY
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.parser import text_string_to_metric_families

from covered import client
from test_engines import memory
from trimtab.errors import NotReady
from trimtab.scoring import meters
from trimtab_server import metrics, readiness, scorer_metrics

HEADERS = {"Authorization": f"Bearer {KEY}"}
SERVER = Path(metrics.__file__).parent


def samples(text):
    """(name, labels) → value, for our own metrics."""
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("trimtab_") and not sample.name.endswith("_created")
    }


@pytest.fixture
async def made(monkeypatch):
    monkeypatch.setattr(scorer_metrics, "FRESH", 0.0)
    app = memory()
    yield app
    await app.state.trimtab.engine.close()


async def scrape(app):
    async with client(app) as http:
        answer = await http.get("/metrics", headers=HEADERS)
    assert answer.status_code == 200
    return samples(answer.text)


async def generate(app, **fields):
    body = {"prompt": "the", "max_tokens": 5, "seed": 1, "scorers": {"good": 1}, **fields}
    async with client(app) as http:
        answer = await http.post("/generate", json=body, headers=HEADERS)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_every_series_exists_from_the_start(made):
    first = await scrape(made)
    assert first["trimtab_ready",] == 0
    assert first["trimtab_scorer_ready", ("scorer", "good")] == 0
    await readiness.check_all(made.state.trimtab)
    await generate(made)
    last = await scrape(made)
    assert set(last) == set(first)
    assert last["trimtab_ready",] == last["trimtab_scorer_ready", ("scorer", "good")] == 1
    for name in ("faults", "overruns"):
        assert {key[1][1] for key in first if key[0] == f"trimtab_scorer_{name}_total"} >= {
            "good",
            "late",
        }


def test_every_reason_and_outcome_has_a_series():
    source = "".join(path.read_text() for path in SERVER.rglob("*.py"))
    assert set(re.findall(r'REFUSED\.labels\("(\w+)"\)', source)) == set(metrics.REASONS)
    registered = {tuple(s.labels.values()) for s in metrics.REQUESTS.collect()[0].samples}
    assert {(outcome,) for outcome in metrics.OUTCOMES} <= registered


async def test_a_step_is_one_call_of_a_scorer(made):
    before = await scrape(made)
    answer = await generate(made)
    after = await scrape(made)

    def more(name, *labels):
        key = (name, *labels)
        return after[key] - before.get(key, 0)

    good = ("scorer", "good")
    steps = answer["choices"][0]["guidance"]["scored_steps"]
    # One more call scores the whole answer, for its record, unless a step has done so.
    assert more("trimtab_scoring_seconds_count", good) in {steps, steps + 1}
    assert more("trimtab_scoring_seconds_sum", good) > 0
    assert more("trimtab_scoring_seconds_count", ("scorer", "late")) == 0


async def test_an_engine_that_does_not_answer_leaves_the_last_numbers(made, monkeypatch):
    state = made.state.trimtab
    await readiness.check_all(state)
    before = await scrape(made)

    async def silent(seconds):
        await asyncio.sleep(60)

    async def dead(seconds):
        raise NotReady("the engine is dead.")

    monkeypatch.setattr(scorer_metrics, "SECONDS", 0.01)
    for scorers in (silent, dead):
        monkeypatch.setattr(state.engine, "scorers", scorers)
        after = await scrape(made)
        assert after.pop(("trimtab_ready",)) == 0
        assert after == {key: value for key, value in before.items() if key != ("trimtab_ready",)}


async def test_answers_in_flight_are_a_gauge(made):
    seen = []
    state = made.state.trimtab
    generate_slowly = state.engine.generate

    async def watched(request):
        seen.append(metrics.IN_FLIGHT._value.get())
        async for piece in generate_slowly(request):
            yield piece

    state.engine.generate = watched
    await generate(made, n=3)
    after = await scrape(made)
    assert seen == [3]
    assert after["trimtab_answers_in_flight",] == 0
    assert after["trimtab_answers_limit",] == 64


def test_the_histogram_counts_as_prometheus_does():
    """The reference is the library's own histogram."""
    ours = meters.Seconds()
    library = Histogram(
        "x", "x", buckets=meters.BUCKETS, registry=(registry := CollectorRegistry())
    )
    for seconds in (0.0, 0.0001, 0.00011, 0.005, 0.3, 10.0, 11.0, 1e6):
        ours.observe(seconds)
        library.observe(seconds)
    below = 0
    for bound, count in zip([*meters.BUCKETS, "+Inf"], ours.counts, strict=True):
        below += count
        assert registry.get_sample_value("x_bucket", {"le": str(bound)}) == below
    assert registry.get_sample_value("x_sum") == pytest.approx(ours.sum)


def test_meters_of_several_engines_add_up():
    one = {"pool": dict(zip(meters.POOL, (1, 2, 3, 4, 5), strict=True))}
    one["seconds"] = {"counts": [1] * (len(meters.BUCKETS) + 1), "sum": 0.5}
    both = meters.merged([one, one])
    assert both["pool"] == dict(zip(meters.POOL, (2, 4, 6, 8, 10), strict=True))
    assert both["seconds"] == {"counts": [2] * (len(meters.BUCKETS) + 1), "sum": 1.0}
