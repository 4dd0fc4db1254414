"""A load that hangs: it is answered in time, and stands in nobody's way."""

import asyncio
from collections import Counter

import pytest

from trimtab.engine import Version
from trimtab_server import loading
from trimtab_server.errors import SlowLoad, response
from trimtab_server.loading import Loading, LoadRequest
from trimtab_server.state import State


class Worker:
    """An engine that never reads what is called "stuck"; the calls that it got."""

    def __init__(self):
        self.calls = Counter()

    async def load(self, version, spec, root):
        self.calls["load"] += 1
        if spec.path.endswith("stuck"):
            await asyncio.sleep(300)
        return {
            "family": "head",
            "reads": "tokens",
            "distributional": False,
            "whole": False,
            "ensemble": False,
        }

    async def serve(self, name, version):
        self.calls["serve"] += 1

    async def drop(self, version):
        self.calls["drop"] += 1


@pytest.fixture
def worker(monkeypatch):
    async def complaint(*_):
        return None

    monkeypatch.setattr(loading.readiness, "complaint", complaint)
    monkeypatch.setattr(loading, "LOAD_SECONDS", 0.5)
    return Worker()


@pytest.fixture
def loads(worker, tmp_path):
    for name in ("stuck", "sound"):
        (tmp_path / name).mkdir()
    scorers = {"old": Version("old", 1, "head")}
    return Loading(State(worker, scorers, {}), tmp_path)


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
    assert worker.calls["drop"] == 2  # the stuck version, and the one unloaded


def test_a_directory_that_cannot_be_looked_for_is_a_load_that_hangs(loads, monkeypatch):
    gone = asyncio.Event()

    async def to_thread(function, *arguments):
        await gone.wait()

    monkeypatch.setattr(loading.asyncio, "to_thread", to_thread)
    with pytest.raises(SlowLoad):
        asyncio.run(loads.load(LoadRequest(name="mood", path="sound")))
