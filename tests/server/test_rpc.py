"""Calls of the worker: answered, failed, too late, or never because the engine is dead."""

import asyncio
import gc
import time
import warnings
from types import SimpleNamespace

import pytest

from trimtab.errors import NotReady, TrimtabError
from trimtab.params import GuidanceParams
from trimtab.xargs import to_xargs

pytestmark = pytest.mark.scorecard(letter="F")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what vLLM's import brings about is not ours
    from vllm.exceptions import GenerationError
    from vllm.sampling_params import RequestOutputKind, SamplingParams
    from vllm.v1.engine.exceptions import EngineDeadError

    from trimtab_server.vllm import records as guided
    from trimtab_server.vllm import rpc


class Engine:
    """An engine whose worker answers with `answer`, an exception, or never (None)."""

    def __init__(self, answer=None):
        self.answer, self.errored = answer, False
        self.engine_core = self
        self.calls, self.waiting, self.closed = [], 0, False

    async def call_utility_all_async(self, *call):
        self.calls.append(call)
        if isinstance(self.answer, Exception):
            raise self.answer
        if self.answer is None:
            self.waiting += 1
            try:
                await asyncio.sleep(300)
            finally:
                self.waiting -= 1
        return self.answer

    async def generate(self, prompt, params, request_id):
        try:
            for finish in (None, None, "length"):
                choice = SimpleNamespace(index=0, token_ids=[5], finish_reason=finish)
                yield SimpleNamespace(
                    prompt_token_ids=[1], outputs=[choice], finished=finish is not None
                )
        finally:
            self.closed = True


async def test_the_workers_of_all_engines_answer():
    engine = Engine([[1, None], [2, None]])
    assert await rpc.call(engine, "trimtab_record", "key", 3) == [1, None, 2, None]
    assert engine.calls == [("collective_rpc", "trimtab_record", None, ("key", 3), None)]


async def test_a_call_has_a_deadline():
    engine = Engine()
    with pytest.raises(NotReady, match="does not answer"):
        await rpc.call(engine, "trimtab_record", seconds=0.1)
    await asyncio.sleep(0)
    assert engine.waiting == 0


async def test_an_engine_that_dies_meanwhile_is_not_waited_for():
    engine = Engine()
    call = asyncio.create_task(rpc.call(engine, "trimtab_record"))
    await asyncio.sleep(0.1)
    assert not call.done()
    engine.errored = True
    with pytest.raises(NotReady, match="the engine is dead"):
        await asyncio.wait_for(call, 2)
    await asyncio.sleep(0)
    assert engine.waiting == 0


async def test_what_fails_says_so_without_the_workers_words(caplog):
    with pytest.raises(NotReady):
        await rpc.call(Engine(EngineDeadError()), "trimtab_score")
    with pytest.raises(TrimtabError, match="trimtab_score") as failed:
        await rpc.call(Engine(Exception("a secret prompt")), "trimtab_score")
    assert "secret" not in failed.value.message
    assert not caplog.records


class RecordingEngine(guided.Recording, Engine):
    """The same, under the mixin that serves."""


async def follow(engine):
    exchange = guided.Exchange()
    guided.EXCHANGE.set(exchange)
    params = SamplingParams(
        output_kind=RequestOutputKind.DELTA, extra_args=to_xargs(GuidanceParams(beta=1.0))
    )
    before = asyncio.all_tasks()
    outputs = engine.generate("x", params, "r1")
    seen = []
    try:
        async for output in outputs:
            seen.append(output)
    except GenerationError as error:
        return exchange, seen, str(error), asyncio.all_tasks() - before
    return exchange, seen, None, asyncio.all_tasks() - before


async def test_a_record_that_does_not_come_ends_the_request(monkeypatch, caplog):
    monkeypatch.setattr(rpc, "SECONDS", 0.2)
    engine = RecordingEngine()
    exchange, seen, error, left = await follow(engine)
    assert len(seen) == 2  # the last one is not passed on without its record
    assert "does not answer" in error
    assert exchange.fault.status == 503
    assert engine.closed
    deadline = time.monotonic() + 5  # the worker gets a call to forget; no endless wait
    while engine.waiting or not all(task.done() for task in left):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    assert [call[3][3] for call in engine.calls] == [True, True]
    left.clear()
    gc.collect()  # what nobody has asked of a task, asyncio logs once the task is gone
    assert not caplog.records


async def test_a_record_that_comes_is_passed_on():
    """The control."""
    record = {"kl": 0.0, "kl_tail": 0.0, "scores": {}, "steps": 3}
    record |= {"scored_steps": 0, "scored_tokens": 0}
    exchange, seen, error, left = await follow(RecordingEngine([[[record | {"error": None}]]]))
    assert (len(seen), error, exchange.fault) == (3, None, None)
    assert exchange.record(0, 0)["steps"] == 3
    assert not left
