"""A load that hangs: it is answered in time, and stands in nobody's way."""

import asyncio
import warnings
from collections import Counter

import pytest

with warnings.catch_warnings():  # vLLM's own, as it is imported
    warnings.simplefilter("ignore")
    from trimtab_server.errors import SlowLoad, response
    from trimtab_server.scorer_list import Version
    from trimtab_server.vllm import loading
    from trimtab_server.vllm.loading import Loading, LoadRequest
    from trimtab_server.vllm.state import State


@pytest.fixture
def worker(monkeypatch):
    """A worker that never reads what is called "stuck"; the calls that it got."""
    calls, loaded = Counter(), {}

    async def call(_, method, *arguments):
        calls[method] += 1
        if method == "trimtab_bring":
            loaded[arguments[0]] = not arguments[1]["path"].endswith("stuck")
        ready = loaded.get(arguments[0]) if method == "trimtab_brought" else None
        return [{"ready": ready, "error": None, "family": "head", "reads": "tokens"}]

    async def complaint(*_):
        return None

    monkeypatch.setattr(loading.rpc, "call", call)
    monkeypatch.setattr(loading.canary, "complaint", complaint)
    monkeypatch.setattr(loading, "LOAD_SECONDS", 0.5)
    return calls


@pytest.fixture
def loads(worker, tmp_path):
    for name in ("stuck", "sound"):
        (tmp_path / name).mkdir()
    scorers = {"old": Version("old", 1, "head")}
    return Loading(State(None, None, "base", scorers, {}), tmp_path)


def test_a_load_has_a_deadline_and_later_ones_go_on(loads, worker):
    async def work():
        stuck = asyncio.create_task(loads.load(LoadRequest(name="mood", path="stuck")))
        await asyncio.sleep(0.1)
        later = asyncio.create_task(loads.load(LoadRequest(name="mood", path="sound")))
        async with asyncio.timeout(0.2):
            await loads.unload("old")  # nothing that is served waits for it
        with pytest.raises(SlowLoad, match="not read within") as late:
            await stuck
        assert response(late.value).status_code == 504
        async with asyncio.timeout(5):
            version = await later
        assert loads.state.scorers == {"mood": version}
        assert version.number == 3

    asyncio.run(work())
    assert worker["trimtab_drop"] == 2  # the stuck version, and the one unloaded


def test_a_directory_that_cannot_be_looked_for_is_a_load_that_hangs(loads, monkeypatch):
    gone = asyncio.Event()

    async def to_thread(function, *arguments):
        await gone.wait()

    monkeypatch.setattr(loading.asyncio, "to_thread", to_thread)
    with pytest.raises(SlowLoad):
        asyncio.run(loads.load(LoadRequest(name="mood", path="sound")))
