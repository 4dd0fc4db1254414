"""One real server for every test that speaks HTTP: `trimtab serve demo`, with an API key."""

import gc
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import httpx
import psutil
import pytest

from trimtab.logs import OURS
from trimtab_models import demo
from trimtab_models.smollm2 import fetch

pytest_plugins = ["scorecard.report"]

HERE = Path(__file__).parent
KEY = "a-key-for-tests"
READY_SECONDS = 240
WARM = "warm=sentiment:1,beta=3"
"""A preset of the session's server."""
ENGINES = {"server", "real_server"}
"""Fixtures of any module that start an engine."""
running = SimpleNamespace(engine=True, slow=True)


@dataclass
class Server:
    """A server in a process of its own, and a client of it."""

    process: subprocess.Popen[bytes]
    url: str
    http: httpx.Client
    log: Path

    def generate(self, **fields: object) -> dict:
        answer = self.http.post("/generate", json=fields)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def engine(self) -> psutil.Process:
        children = psutil.Process(self.process.pid).children()
        return next(child for child in children if "EngineCore" in " ".join(child.cmdline()))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(**more: str) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("TRIMTAB_")}
    return {
        **clean,
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "PYTHONPATH": os.pathsep.join(
            p for p in (str(HERE / "server"), str(HERE), clean.get("PYTHONPATH")) if p
        ),
        **more,
    }


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what uses an engine, and run it first, then what is slow.

    So short tests fill the workers' last minutes.

    Mark what uses the real model, too.
    """
    for item in items:
        if "smollm2" in getattr(item, "fixturenames", ()):
            item.add_marker("real")
        if ENGINES & set(getattr(item, "fixturenames", ())):
            item.add_marker("engine")
    engine = {item.path for item in items if item.get_closest_marker("engine")}
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path not in engine, item.path not in slow))


def pytest_collection_finish() -> None:
    """Let no later collection of garbage pass over what torch and vLLM have made by now."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Python's own end frees everything again."""
    gc.unfreeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Remember whether the test that runs may start an engine, and whether it may take long."""
    running.engine = item.get_closest_marker("engine") is not None
    running.slow = running.engine or item.get_closest_marker("slow") is not None


def json_lines(
    script: Path, *arguments: object, timeout: int = 600, env: dict[str, str] | None = None
) -> list[dict]:
    """Run a script in a process of its own; the JSON objects that it prints, one a line."""
    assert running.slow, "mark this test: pytest.mark.slow"
    done = subprocess.run(
        [sys.executable, script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env=environment() if env is None else env,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@contextmanager
def start(command: list[str], *, ready: str, key: str = KEY, **env: str) -> Iterator[Server]:
    """Run a server until the block ends; `ready` is the path that must answer 200."""
    assert running.engine or "--upstream" in command, "mark this test: pytest.mark.engine"
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", *command, "--port", str(port)],
                env=environment(**env),
                cwd=folder,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        headers = {"Authorization": f"Bearer {key}"}
        try:
            with httpx.Client(base_url=url, headers=headers, timeout=60) as http:
                server = Server(process, url, http, log)
                _wait(server, ready)
                yield server
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(server: Server, path: str) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and server.process.poll() is None:
        try:
            if server.http.get(path).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    pytest.fail("the server did not get ready:\n" + server.log.read_text()[-4000:])


@pytest.fixture(autouse=True)
def _logging_as_new() -> None:
    """Commands configure logging, and a library that vLLM imports sets the root logger's level."""
    logging.getLogger().setLevel(logging.WARNING)
    for name, logger in logging.root.manager.loggerDict.items():
        if isinstance(logger, logging.Logger) and name.partition(".")[0] in OURS:
            logger.disabled = False
            logger.propagate = True
            if name in OURS:
                logger.setLevel(logging.NOTSET)
                logger.handlers.clear()


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt: a shell starts a background job with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A probe of the demo's base."""
    from probes_made import made

    directory: Path = made(tmp_path_factory.mktemp("probe") / "probe", demo.base(), support=(-1, 1))
    return directory


@pytest.fixture(scope="session")
def server(probe: Path) -> Iterator[Server]:
    """The demo, beside its scorers some that fail once a text has FAILS_AT tokens (faulty.py),
    one that spells (scorecard/spelling.py), and a probe."""
    faulty = ["raises", "nan", "infinite", "exits", "interrupts", "exhausts", "sleeps", "loops"]
    command = ["trimtab_server.cli", "serve", "demo", "--scorer-timeout", "3"]
    for name in faulty:
        command += ["--scorer", f"{name}=faulty:{name},family=function"]
    command += ["--scorer", "spelling=scorecard.spelling:spelling,family=function"]
    command += ["--scorer", f"probe={probe}", "--preset", WARM]
    for name in ("sentiment", "formality", "brevity"):
        command += ["--default-scorer", f"{name}=1"]
    # The demo is on this machine, so all of it works without the hub.
    with start(command, ready="/ready", TRIMTAB_API_KEY=KEY, HF_HUB_OFFLINE="1") as running:
        yield running
    assert running.process.returncode == 0, "SIGTERM must end the server well"


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct in the user's cache, where it is made at most once."""
    try:
        return fetch.fetch()
    except fetch.Unavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def real_server(smollm2: Path) -> Iterator[Server]:
    """A real base with its scorers, and one that likes exclamation marks."""
    command = ["trimtab_server.cli", "serve", "smollm2"]
    command += ["--scorer", "exclaims=real_scorers:exclaims,family=function,reads=text"]
    with start(command, ready="/ready", TRIMTAB_CACHE=str(smollm2.parent)) as running:
        yield running
    assert running.process.returncode == 0, "SIGTERM must end the server well"
