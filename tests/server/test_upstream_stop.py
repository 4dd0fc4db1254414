"""`trimtab serve --upstream` as a process: how it drains, and how it is made to end."""

import asyncio
import concurrent.futures
import json
import os
import signal
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import psutil
import pytest
from conftest import KEY, start

from trimtab_server import recheck

pytestmark = pytest.mark.slow  # starts servers over an upstream

DRAIN = 2.0
GUIDED = {"scorers": {"good": 1.0}, "beta": 1.0}
ROUTES = {
    "/generate": {"prompt": "Say it:", **GUIDED},
    "/v1/completions": {"model": "m", "prompt": "Say it:", "guidance": GUIDED},
}


def slack():
    """Seconds that a busy machine may add to a promise."""
    return 1.5 * max(1, os.getloadavg()[0] / os.cpu_count())


class Slow(BaseHTTPRequestHandler):
    """An upstream whose every token takes a fifth of a second, and that never ends."""

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        time.sleep(0.2)
        logprobs = {"tokens": [" good"], "token_logprobs": [-0.7]}
        logprobs["top_logprobs"] = [{" good": -0.7, " bad": -0.7}]
        choice = {"text": " good", "finish_reason": "length", "logprobs": logprobs}
        answer = json.dumps({"choices": [choice]}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


@pytest.fixture
def gateway():
    with ThreadingHTTPServer(("127.0.0.1", 0), Slow) as upstream:
        upstream.daemon_threads = True
        threading.Thread(target=upstream.serve_forever, daemon=True).start()
        command = ["trimtab_server.cli", "serve", "--drain-timeout", str(DRAIN)]
        command += ["--upstream", f"http://127.0.0.1:{upstream.server_port}/v1"]
        command += ["--upstream-model", "m"]
        command += ["--scorer", "good=upstream_fake:likes_good,family=function,reads=text"]
        try:
            with start(command, ready="/ready", TRIMTAB_API_KEY=KEY) as running:
                yield running
        finally:
            upstream.shutdown()


def streamed(server, path, tokens, begun):
    body = {**ROUTES[path], "max_tokens": tokens, "stream": True}
    text = ""
    with httpx.stream(
        "POST", server.url + path, json=body, headers=server.http.headers, timeout=60
    ) as answer:
        for piece in answer.iter_text():
            text += piece
            begun.release()
    assert text.endswith("data: [DONE]\n\n")
    return text


def test_it_drains_and_then_ends_what_is_open(gateway):
    begun = threading.Semaphore(0)
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        short = [pool.submit(streamed, gateway, path, 6, begun) for path in ROUTES]
        long = [pool.submit(streamed, gateway, path, 400, begun) for path in ROUTES]
        body = {**ROUTES["/generate"], "max_tokens": 400}
        whole = pool.submit(gateway.http.post, "/generate", json=body)
        for _ in range(4):
            assert begun.acquire(timeout=30)
        began = time.monotonic()
        gateway.process.terminate()
        time.sleep(0.2)
        with httpx.Client(base_url=gateway.url, headers=gateway.http.headers) as http:
            refused = http.get("/ready")
        assert refused.status_code == 503
        assert refused.headers["connection"] == "close"
        assert gateway.process.wait(DRAIN + 2 + slack()) == 0
        assert time.monotonic() - began > DRAIN - 0.2
    assert all('"kl"' in future.result() for future in short)
    assert all("the server is stopping" in future.result() for future in long)
    assert whole.result().status_code == 503
    assert "Traceback" not in gateway.log.read_text()


def test_a_second_signal_ends_it_at_once(gateway):
    begun = threading.Semaphore(0)

    def broken():
        with pytest.raises(httpx.HTTPError):
            streamed(gateway, "/generate", 400, begun)

    thread = threading.Thread(target=broken)
    thread.start()
    assert begun.acquire(timeout=30)
    children = psutil.Process(gateway.process.pid).children(recursive=True)
    gateway.process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert gateway.process.poll() is None
    gateway.process.send_signal(signal.SIGINT)
    assert gateway.process.wait(slack()) == 128 + signal.SIGINT
    thread.join(10)
    assert not psutil.wait_procs(children, timeout=5)[1]
    assert "Traceback" not in gateway.log.read_text()


async def test_a_check_is_made_once_and_waited_for_briefly(monkeypatch):
    monkeypatch.setattr(recheck, "SECONDS", 0.1)
    made, go, check = [], asyncio.Event(), recheck.SharedCheck()

    async def work():
        made.append(1)
        await go.wait()

    assert await asyncio.gather(check.done(work), check.done(work)) == [False, False]
    assert not await check.done(work)
    go.set()
    assert await check.done(work)
    assert len(made) == 1
    assert await check.done(work)
    assert len(made) == 2
