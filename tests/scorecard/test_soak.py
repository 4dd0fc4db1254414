"""Scorecard R: a long run of mixed requests, and what it leaves behind."""

import asyncio
import re
import shutil
import time
from pathlib import Path

import psutil
import pytest
from conftest import KEY, start
from safetensors.torch import load_file, save_file

from scorecard import endings, full
from scorecard.slope import growth
from scorecard.soak import ADMIN, CANCELLED, FLAGS, Soak
from trimtab_models import demo
from trimtab_models.manifest import write_manifest

pytestmark = [pytest.mark.engine, pytest.mark.scorecard(letter="R")]

REQUESTS = 10_000 if full() else 300
WARM_UP = 6_000 if full() else 0
"""Until caches are full, and the C library has seen most sizes of blocks."""
PREEMPTIONS = 50 if full() else 5
BYTES_A_REQUEST = 1024
SEED = 13


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    shelf = tmp_path_factory.mktemp("shelf")
    for name in ("sentiment", "negated"):
        shutil.copytree(Path(demo.scorers()["sentiment"]), shelf / name)
    file = shelf / "negated" / "model.safetensors"
    tensors = load_file(file)
    tensors["score.weight"] = -tensors["score.weight"]
    save_file(tensors, file, {"format": "pt"})
    write_manifest(shelf / "negated")
    command = ["trimtab_server.cli", "serve", "demo", *FLAGS, "--scorer-dir", str(shelf)]
    for name in ("sentiment", "formality", "brevity"):
        command += ["--default-scorer", f"{name}=1"]
    command += ["--scorer", "sleepy=scorecard.sleepy:sleepy,family=function"]
    env = {"TRIMTAB_API_KEY": KEY, "TRIMTAB_ADMIN_KEY": ADMIN}
    with start(command, ready="/ready", **env) as running:
        yield running


@pytest.fixture(scope="module")
def before(server):
    """Resources of the idle server, after its first answer."""
    server.generate(prompt="The room was", max_tokens=4)
    return resources(server)


@pytest.fixture(scope="module")
def report(server, before):
    assert before
    return asyncio.run(Soak(server, REQUESTS, SEED, WARM_UP).run())


def resources(server):
    """File descriptors and threads of each process."""
    root = psutil.Process(server.process.pid)
    return {p.pid: (p.num_fds(), p.num_threads()) for p in (root, *root.children(recursive=True))}


def metric(server, name):
    text = server.http.get("/metrics").text
    return sum(float(value) for value in re.findall(rf"^{name}{{.*}} (\S+)$", text, re.M))


def test_survivors_are_equal_to_solo_runs(report):
    print(dict(report.answers))
    assert report.answers["compared"] > REQUESTS / 3
    assert report.answers["mismatch"] == 0


def test_nothing_fails(report):
    assert report.answers["5xx"] == report.answers["malformed"] == 0


def test_nobody_waits_too_long(report):
    assert report.answers["slow"] == 0


def test_every_stream_ends(report):
    assert report.answers["cut"] == 0


def test_clients_left_in_every_phase(report):
    left = [report.answers[phase] for phase in ("in the body", "on admission", "in the stream")]
    assert min(left) > REQUESTS * CANCELLED / 16


def test_scorers_came_and_went(report):
    assert set(report.loads) == {200}
    assert len(report.loads) >= REQUESTS / 50


def test_requests_were_preempted(server, report):
    assert report is not None
    assert metric(server, "vllm:num_preemptions_total") >= PREEMPTIONS


def test_nothing_is_left_running(server, report, before):
    assert report is not None
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        busy = metric(server, "vllm:num_requests_running")
        busy += metric(server, "vllm:num_requests_waiting")
        after = resources(server)
        grown = {
            pid: (fds, threads)
            for pid, (fds, threads) in after.items()
            if pid not in before or abs(fds - before[pid][0]) > 2 or threads > before[pid][1] + 2
        }
        if not busy and not grown:
            return
        time.sleep(0.5)
    pytest.fail(f"{busy} requests, processes {grown}, before {before}")


@pytest.mark.skipif(not full(), reason="too short to tell; SCORECARD=full")
def test_memory_is_flat(report):
    for pid, points in report.memory.items():
        slope, bound = growth(points)
        print(f"{report.names[pid]}: {slope:.0f} B a request, at most {bound:.0f}")
    assert all(growth(points)[1] <= BYTES_A_REQUEST for points in report.memory.values())


def test_the_next_answer_is_as_before(server, report):
    assert report is not None
    assert server.http.get("/ready").status_code == 200
    log = server.log.read_text()
    assert "Traceback" not in log, log[-3000:]


@pytest.mark.scorecard(letter="F")
def test_a_second_signal_ends_it_at_once(server):
    """The last of this server."""
    endings.by_a_second_signal(server)
