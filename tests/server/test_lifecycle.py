"""What becomes of the server when its engine dies, and of the engine when its client leaves."""

import time

import httpx
import pytest

pytestmark = pytest.mark.scorecard(letter="F")

LONG = {"prompt": "The room was", "max_tokens": 480, "ignore_eos": True, "beta": 2}


def running(server):
    lines = server.http.get("/metrics").text.splitlines()
    return sum(float(x.split()[-1]) for x in lines if x.startswith("vllm:num_requests_running"))


def test_a_client_that_leaves_is_forgotten(server):
    for stream in (True, False):
        try:
            with (
                httpx.Client(base_url=server.url, headers=server.http.headers) as client,
                client.stream(
                    "POST", "/generate", json={**LONG, "stream": stream}, timeout=0.5
                ) as answer,
            ):
                next(answer.iter_lines())
        except httpx.ReadTimeout:
            assert not stream
        deadline = time.monotonic() + 10
        while running(server) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert running(server) == 0


def test_a_stalled_engine_is_not_ready(server):
    engine = server.engine()
    engine.suspend()
    try:
        stalled = server.http.get("/ready")
        assert stalled.status_code == 503
        assert "does not answer" in stalled.json()["error"]["message"]
        assert server.http.get("/health").status_code == 200
    finally:
        engine.resume()
    assert server.http.get("/ready").status_code == 200
