"""A process that works for another ends with it, however that one ends."""

import subprocess
import sys
import time

import psutil
import pytest
from conftest import environment

from trimtab import orphans

pytestmark = [pytest.mark.scorecard(letter="F"), pytest.mark.slow]  # kills processes

SLEEP = "import time; time.sleep(300)"
OWNER = """
import subprocess, sys, time
from trimtab.orphans import owned
with owned():
    started = [subprocess.Popen([sys.executable, "-c", *words]) for words in {children!r}]
print(*(one.pid for one in started), flush=True)
time.sleep(300)
"""
WORKER = f"from trimtab.orphans import watch; watch(); {SLEEP}"
BETWEEN = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {WORKER!r}])"


@pytest.fixture
def start():
    started = []

    def begin(*children):
        owner = subprocess.Popen(
            [sys.executable, "-c", OWNER.format(children=children)],
            env=environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(owner)
        pids = [int(pid) for pid in owner.stdout.readline().split()]
        started.extend(psutil.Process(pid) for pid in pids)
        return owner, started[-len(pids) :]

    yield begin
    for one in started:
        if one.poll() is None if isinstance(one, subprocess.Popen) else one.is_running():
            one.kill()
    started[0].wait()
    started[0].stdout.close()


def watching(process):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        below = [process, *process.children(recursive=True)]
        if any(one.num_threads() > 1 for one in below):
            return below
        time.sleep(0.1)
    raise AssertionError("it does not watch")


def alive(processes, seconds):
    return psutil.wait_procs(processes, timeout=seconds)[1]


def test_workers_end_with_a_killed_owner(start):
    owner, (worker, control) = start([WORKER], [SLEEP])
    watching(worker)
    owner.kill()  # nobody has waited for it: it is a zombie
    assert not alive([worker], 10)
    assert alive([control], 0.5) == [control]


def test_processes_between_and_beside_end_too(start):
    """Those that cannot watch: an engine above its workers, a coordinator of engines."""
    owner, (engine, coordinator, foreign) = start(
        [BETWEEN, "VLLM::EngineCore"], [SLEEP, "VLLM::DPCoordinator"], [SLEEP, "other"]
    )
    below = watching(engine)
    assert len(below) == 2
    owner.kill()
    assert not alive([*below, coordinator], 10)
    assert alive([foreign], 0.5) == [foreign]


def test_a_worker_lives_as_long_as_its_owner(start):
    _, (worker,) = start([WORKER])
    watching(worker)
    assert alive([worker], 3) == [worker]


def test_nobody_watches_itself(monkeypatch):
    """An engine within the process of its owner; nor one without, nor one of an unknown owner."""

    def refused(**_):
        raise AssertionError("a watch has begun")

    monkeypatch.setattr(orphans, "Thread", refused)
    with orphans.owned():
        orphans.watch()
    orphans.watch()
    orphans.watch(2**22 + 1)
    with pytest.raises(AssertionError, match="a watch has begun"):
        orphans.watch(psutil.Process().ppid())  # the control
