"""Scorecard F: processes that are stopped, killed and left alone, around real engines.

In full, each three times, and with several workers too.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import httpx
import psutil
import pytest
from conftest import KEY, environment, free_port, start

from scorecard import endings, full
from scorecard.endings import (
    GUIDED,
    LONG,
    SLEEPY,
    TYPED,
    Requests,
    family,
    gone,
    no_traceback,
    request_body,
    slack,
)

pytestmark = [pytest.mark.engine, pytest.mark.scorecard(letter="F")]

TIMES = range(3 if full() else 1)
COMMAND = ["trimtab_server.cli", "serve", "demo"]
COMMAND += ["--scorer", "sleepy=scorecard.sleepy:sleepy,family=function"]
COMMAND += ["--scorer", "slow=scorecard.sleepy:slow,family=function"]
COMMAND += ["--scorer", "slumber=scorecard.sleepy:slumber,family=function"]
for default in ("sentiment", "formality", "brevity"):
    COMMAND += ["--default-scorer", f"{default}=1"]
SLOW = {**SLEEPY, "scorers": {"slow": 1}}
DRAIN = 4.0


def metric(server, name):
    lines = server.http.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


@pytest.fixture(scope="module")
def server():
    """One server for the faults that it survives; the last test of it is how it ends."""
    command = [*COMMAND, "--drain-timeout", str(DRAIN)]
    with start(command, ready="/ready", TRIMTAB_API_KEY=KEY) as running:
        yield running


@pytest.mark.parametrize("_", TIMES)
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_is_forgotten_within_two_steps(server, stream, _):
    body = request_body("/generate", SLEEPY, stream=stream, **LONG)
    before = metric(server, "vllm:generation_tokens_total")
    headers = server.http.headers
    if stream:
        with httpx.stream("POST", f"{server.url}/generate", json=body, headers=headers) as answer:
            for _ in zip(range(8), answer.iter_lines(), strict=False):
                pass
    else:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/generate", json=body, headers=headers, timeout=1.5)
    left = metric(server, "vllm:generation_tokens_total")
    assert left > before
    deadline = time.monotonic() + 10
    while metric(server, "vllm:num_requests_running"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert metric(server, "vllm:generation_tokens_total") - left <= 2
    assert no_traceback(server)


@pytest.mark.parametrize("_", TIMES)
def test_an_engine_that_stands_still_goes_on_as_if_it_had_not(server, _):
    body = request_body(
        "/generate", GUIDED, stream=True, temperature=0, max_tokens=300, ignore_eos=True
    )
    alone = server.generate(**body | {"stream": False})["choices"][0]["token_ids"]
    requests = Requests(server)
    requests.send("/generate", body)
    requests.wait(1)
    processes = [p for p in family(server) if "resource_tracker" not in " ".join(p.cmdline())]
    for process in processes:
        process.suspend()
    try:
        began = time.monotonic()
        stalled = server.http.get("/ready")
        assert stalled.status_code == 503
        assert time.monotonic() - began < 5 + slack()
        assert server.http.get("/health").status_code == 200
    finally:
        for process in processes:
            process.resume()
    [answer] = requests.join()
    events = [json.loads(e.removeprefix("data: ")) for e in answer.text.split("\n\n")[:-2]]
    assert [t for e in events for c in e["choices"] for t in c["token_ids"]] == alone
    assert answer.ended_with == "record"
    assert server.http.get("/ready").status_code == 200


@contextmanager
def deaf(server, count):
    """Clients that ask for much and read nothing."""
    sockets = []
    body = json.dumps(
        request_body(
            "/generate", {**GUIDED, "k": 256, "mass": 1, "trace": True}, n=2, stream=True, **LONG
        )
    )
    for _ in range(count):
        one = socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1])))
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        one.sendall(
            f"POST /generate HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer {KEY}\r\n"
            "Content-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        sockets.append(one)
    try:
        yield
    finally:
        for one in sockets:
            one.close()


def test_sigterm_drains(server):
    """Eight guided streams that have time end well; others, and the deaf, end with the drain."""
    children = family(server)
    routes = ["/generate", "/v1/completions", "/v1/chat/completions", "/v1/responses"]
    short, long = Requests(server), Requests(server)
    with deaf(server, 2):
        for stream in (True, False):
            for path in [*routes, "/v1/messages"]:
                long.send(path, request_body(path, SLOW, stream=stream, **LONG))
        long.wait(3)
        for path in ["/v1/messages", *routes[:3]] * 2:
            short.send(path, request_body(path, {"beta": 2}, stream=True, max_tokens=6))
        short.wait(8)
        began = time.monotonic()
        server.process.terminate()
        time.sleep(0.2)
        refused = server.http.get("/ready")
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        assert server.http.post("/generate", json={"prompt": "x"}).status_code == 503
        assert server.http.get("/health").status_code == 200
        assert server.process.wait(DRAIN + 2 + slack()) == 0
        took = time.monotonic() - began
    assert took > DRAIN - 0.2
    assert [answer.ended_with for answer in short.join()] == ["record"] * 8
    answers = long.join()
    # Anthropic's has no ignore_eos: it may end before.
    ends = [answer.ended_with for answer in answers if answer.path != "/v1/messages"]
    assert ends == ["error"] * 8
    assert {answer.status for answer in answers if answer.text.startswith('{"error"')} == {503}
    assert gone(children, 5)
    assert no_traceback(server)


@pytest.mark.parametrize("_", TIMES)
@pytest.mark.parametrize("whom", ["EngineCore", "Worker"] if full() else ["EngineCore"])
def test_a_killed_engine_ends_all(whom, _):
    with start(COMMAND, ready="/ready", TRIMTAB_API_KEY=KEY) as server:
        children = family(server)
        requests = Requests(server)
        for path in ("/generate", "/v1/completions", "/v1/chat/completions", *TYPED):
            for stream in (True, False):
                requests.send(path, request_body(path, SLOW, stream=stream, **LONG))
        # Its record is fetched now; the scorer has not scored it before.
        fetching = {"scorers": {"slumber": 1}, "beta": 0}
        requests.wait(3)
        requests.send(
            "/generate", request_body("/generate", fetching, max_tokens=16, ignore_eos=True)
        )
        time.sleep(0.5)
        killed = [p for p in children if f"VLLM::{whom}" in " ".join(p.cmdline())]
        began = time.monotonic()
        for process in killed or [server.engine()]:
            process.kill()
        assert server.process.wait(10 + slack()) not in (0, None)
        # Anthropic's has no ignore_eos: it may end before.
        answers = [a for a in requests.join() if a.path != "/v1/messages" or a.at > began]
        assert len(answers) >= 9
        assert {answer.ended_with for answer in answers} == {"error"}
        assert max(answer.at for answer in answers) - began < 5 + slack()
        assert gone(children, 10)
        assert "engine died" in server.log.read_text()


# In the short form, endings.py has servers of other modules end thus.
in_full = pytest.mark.skipif(not full(), reason="the long form of the scorecard")


def several():
    """Flags of servers with several engines and workers."""
    flags = {"tensor parallel": ["--tensor-parallel-size", "2"]}
    flags["data parallel"] = ["--data-parallel-size", "2"]
    return {"alone": [], **(flags if full() else {})}


@in_full
@pytest.mark.parametrize("_", TIMES)
@pytest.mark.parametrize("flags", several().values(), ids=several())
def test_no_engine_outlives_its_server(flags, _):
    env = {"TRIMTAB_API_KEY": KEY, "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    with start([*COMMAND, *flags], ready="/ready", **env) as server:
        endings.by_kill(server)


@in_full
@pytest.mark.parametrize("_", TIMES)
def test_a_second_signal_ends_it_at_once(_):
    with start(COMMAND, ready="/ready", TRIMTAB_API_KEY=KEY) as server:
        endings.by_a_second_signal(server)


@in_full
@pytest.mark.parametrize("_", TIMES)
def test_a_signal_to_all_processes_drains_too(_):
    """Ctrl-C at a terminal, or a service manager: the engine lives as long as the drain."""
    with start(COMMAND, ready="/ready", TRIMTAB_API_KEY=KEY) as server:
        children = family(server)
        requests = Requests(server)
        for _ in range(4):
            requests.send(
                "/generate", request_body("/generate", SLEEPY, stream=True, max_tokens=24)
            )
        requests.wait(4)
        for process in [*children, server.process]:
            process.send_signal(signal.SIGINT)
        assert server.process.wait(32 + slack()) == 0
        assert [answer.ended_with for answer in requests.join()] == ["record"] * 4
        assert gone(children, 5)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("after", [0.2, 1, 4, 7] if full() else [2])
def test_a_signal_while_it_loads(number, after, tmp_path):
    """Some seconds after the port is taken: in imports, with and without an engine."""
    port, log = free_port(), tmp_path / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", *COMMAND, "--port", str(port)],
            env=environment(),
            cwd=tmp_path,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    children = []
    try:
        deadline = time.monotonic() + 60
        while not listens(port):
            assert time.monotonic() < deadline
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        time.sleep(after)
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        assert process.wait(3 + slack()) == 128 + number
    finally:
        process.kill()
        process.wait()
    assert gone(children, 5)
    assert "Traceback" not in log.read_text()
    assert log.read_text().endswith("trimtab: stopped.\n")


def listens(port):
    return any(c.laddr.port == port for c in psutil.net_connections("tcp") if c.status == "LISTEN")


def test_the_control_of_what_is_left_behind():
    """A child of a killed process is seen to live on, if nothing ends it."""
    code = "import subprocess, sys, time\n"
    code += "print(subprocess.Popen(['sleep', '60']).pid, flush=True)\ntime.sleep(60)"
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    child = psutil.Process(int(owner.stdout.readline()))
    owner.kill()
    owner.wait()
    owner.stdout.close()
    try:
        assert not gone([child], 1)
    finally:
        os.kill(child.pid, signal.SIGKILL)
