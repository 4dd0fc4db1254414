"""A scorer is loaded on all servers of a fleet or on none: real routes over a fake engine."""

import asyncio
import threading
import time
from contextlib import ExitStack, contextmanager

import pytest
import uvicorn
from conftest import free_port
from fastapi import FastAPI
from typer.testing import CliRunner

from trimtab.engine import Version
from trimtab.errors import NoRoom, TrimtabError
from trimtab_server import errors, fleet, loading
from trimtab_server.cli import app as cli
from trimtab_server.loading import Loading, LoadRequest
from trimtab_server.routes import scorers
from trimtab_server.state import State


class Engine:
    """An engine whose loads may be refused; the versions that it has and serves."""

    def __init__(self, refuses=False):
        self.refuses, self.has, self.serves = refuses, set(), {}

    async def load(self, version, spec, root):
        if self.refuses:
            raise NoRoom("there is no room for it.")
        self.has.add(version)
        return {
            "family": "head",
            "reads": "tokens",
            "distributional": False,
            "whole": False,
            "ensemble": False,
        }

    async def serve(self, name, version):
        self.serves[name] = version

    async def drop(self, version):
        self.has.discard(version)


@pytest.fixture(autouse=True)
def healthy(monkeypatch):
    async def complaint(*_):
        return None

    monkeypatch.setattr(loading.readiness, "complaint", complaint)
    monkeypatch.setattr(fleet, "wait_fixed", lambda _: lambda _: 0.0)


def loads_of(engine, root):
    (root / "new").mkdir(exist_ok=True)
    return Loading(State(engine, {"kind": Version("kind", 1, "head")}, {}), root)


@contextmanager
def served(engine, root):
    """The scorer routes of a server; yields its address."""
    app = FastAPI()
    app.include_router(scorers.router)
    app.add_exception_handler(TrimtabError, errors.handle)
    app.state.trimtab_loading = loads_of(engine, root)
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def servers(tmp_path, *engines):
    with ExitStack() as stack:
        yield [stack.enter_context(served(engine, tmp_path)) for engine in engines]


FIELDS = {"name": "kind", "path": "new"}


def test_all_servers_change_together(tmp_path):
    engines = Engine(), Engine()
    with servers(tmp_path, *engines) as urls:
        replies = fleet.load(urls, FIELDS, None)
    assert [(reply.url, reply.body["version"]) for reply in replies] == [(u, 2) for u in urls]
    assert [engine.serves for engine in engines] == [{"kind": "kind@2"}] * 2


def test_one_that_refuses_changes_none(tmp_path):
    engines = Engine(), Engine(refuses=True), Engine()
    with servers(tmp_path, *engines) as urls:
        with pytest.raises(TrimtabError, match="nothing was changed") as refusal:
            fleet.load(urls, FIELDS, None)
        assert f"{urls[1]}: there is no room for it." in refusal.value.message
        assert urls[0] not in refusal.value.message
    assert [engine.serves for engine in engines] == [{}] * 3
    assert [engine.has for engine in engines] == [set()] * 3


def test_one_that_is_down_changes_none(tmp_path):
    engine = Engine()
    down = f"http://127.0.0.1:{free_port()}"
    with (
        servers(tmp_path, engine) as urls,
        pytest.raises(TrimtabError, match=r"nothing was changed.*ConnectError"),
    ):
        fleet.load([*urls, down], FIELDS, None)
    assert engine.serves == {}
    assert engine.has == set()


def test_the_command(tmp_path):
    engines = Engine(), Engine(refuses=True)
    runner = CliRunner()
    with servers(tmp_path, *engines) as urls:
        options = [part for url in urls for part in ("--server", url)]
        refused = runner.invoke(cli, ["fleet", "load", "kind", "new", *options])
        loaded = runner.invoke(cli, ["fleet", "load", "kind", "new", "--server", urls[0]])
        twice = runner.invoke(cli, ["fleet", "load", "kind", "new", *options[:2], *options[:2]])
    assert refused.exit_code == twice.exit_code == 1
    assert refused.output.count("\n") == 1
    assert "nothing was changed" in refused.output
    assert "twice" in twice.output
    assert loaded.output == f"{urls[0]}: serves kind, version 3\n"


def test_a_version_that_nobody_serves_is_dropped(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "STAGED_SECONDS", 0.05)
    engine = Engine()

    async def work():
        loads = loads_of(engine, tmp_path)
        version = await loads.load(LoadRequest(name="kind", path="new", serve=False))
        assert engine.has == {version.key}
        assert loads.state.scorers["kind"].number == 1
        await asyncio.sleep(0.2)
        with pytest.raises(TrimtabError, match="waits to be served") as late:
            await loads.serve_staged("kind", version.number)
        assert late.value.status == 404

    asyncio.run(work())
    assert engine.has == set()
    assert engine.serves == {}
