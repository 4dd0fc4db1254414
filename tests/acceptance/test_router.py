"""Two servers behind vLLM's own router, one of them killed; needs the package `vllm-router`.

500 requests, guided and not, streamed and not, greedy: each answer is the one that a server gives
alone, or the connection was lost with the killed server.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from conftest import environment, free_port

from trimtab_models import demo

pytest.importorskip("vllm_router")
pytestmark = [pytest.mark.engine, pytest.mark.slow]

REQUESTS, KILLED_AT, AT_ONCE = 500, 200, 8
SETTINGS = [{}, {"scorers": {"sentiment": 1}, "beta": 4}, {"scorers": {"formality": -1}, "beta": 3}]


def body(i):
    prompts = demo.prompts("test", 25, seed=5)
    guidance = SETTINGS[i % len(SETTINGS)]
    message = {"role": "user", "content": prompts[i % len(prompts)]}
    fields = {"model": "demo", "messages": [message], "temperature": 0, "max_tokens": 32}
    return {**fields, "stream": i % 2 == 1, **({"guidance": guidance} if guidance else {})}


def answer(http, request):
    """The text of an answer; None if the connection was lost.

    Raises:
        AssertionError: any other failure.
    """
    try:
        if not request["stream"]:
            reply = http.post("/v1/chat/completions", json=request)
            if reply.status_code >= 502 or (reply.status_code == 500 and "error" not in reply.text):
                return None
            assert reply.status_code == 200, (reply.status_code, reply.text)
            return reply.json()["choices"][0]["message"]["content"]
        with http.stream("POST", "/v1/chat/completions", json=request) as reply:
            if reply.status_code >= 500:
                return None
            assert reply.status_code == 200, reply.status_code
            text, ended = "", False
            for line in reply.iter_lines():
                data = line.removeprefix("data: ")
                if data == "[DONE]":
                    ended = True
                elif data:
                    delta = json.loads(data)["choices"][0]["delta"]
                    text += delta.get("content") or ""
            return text if ended else None
    except httpx.TransportError:
        return None


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    """Two servers and a router; yields (address of the router, of the servers, processes)."""
    root = tmp_path_factory.mktemp("router")
    ports = [free_port() for _ in range(3)]
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    serve = [sys.executable, "-m", "trimtab_server.cli", "serve", "demo", "--port"]
    route = [sys.executable, "-m", "vllm_router.launch_router", "--host", "127.0.0.1"]
    route += ["--worker-urls", *urls[:2], "--policy", "cache_aware", "--port", str(ports[2])]
    commands = [[*serve, str(ports[0])], [*serve, str(ports[1])], route]
    shared = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    processes = []
    for i, command in enumerate(commands):
        with (root / f"{i}.log").open("wb") as log:
            new = subprocess.Popen(
                command, env=environment(**shared), stdout=log, stderr=log, start_new_session=True
            )
        processes.append(new)
    try:
        deadline = time.monotonic() + 300
        for url in (urls[0], urls[1], urls[2]):
            path = "/v1/models" if url == urls[2] else "/ready"
            while True:
                assert time.monotonic() < deadline, (root / "2.log").read_text()[-2000:]
                try:
                    if httpx.get(url + path, timeout=5).status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                time.sleep(0.5)
        yield urls[2], urls[:2], processes
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_a_killed_server_costs_only_what_it_was_serving(fleet):
    router, [first, _], processes = fleet
    with httpx.Client(base_url=first, timeout=120) as http:
        different = {json.dumps(body(i)): body(i) for i in range(REQUESTS)}
        expected = {key: answer(http, request) for key, request in different.items()}
    assert all(expected.values())
    begun, lock = 0, threading.Lock()
    served_after_kill = Counter()

    def send(i):
        nonlocal begun
        with lock:
            begun += 1
            if begun == KILLED_AT:
                os.killpg(processes[1].pid, signal.SIGKILL)
            late = begun > KILLED_AT + 2 * AT_ONCE
        with httpx.Client(base_url=router, timeout=120) as http:
            text = answer(http, body(i))
        if late:
            served_after_kill[text is not None] += 1
        return text

    with ThreadPoolExecutor(AT_ONCE) as pool:
        texts = list(pool.map(send, range(REQUESTS)))
    results = Counter(
        "lost" if text is None else "right" if text == expected[json.dumps(body(i))] else "wrong"
        for i, text in enumerate(texts)
    )
    print(dict(results), dict(served_after_kill))
    assert results["wrong"] == 0
    assert results["lost"] <= AT_ONCE
    assert results["right"] >= REQUESTS - AT_ONCE
    guided = {json.dumps(body(i)): text for i, text in enumerate(texts) if text is not None}
    assert len(set(guided.values())) > 10  # guidance and prompts do tell
