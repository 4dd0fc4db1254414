"""Open WebUI's server, over its API: a model of its own with the guidance as a custom parameter."""

import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
from probe import KEY, PROMPT, TOKENS, URL, run

with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
settings = {
    "DATA_DIR": tempfile.mkdtemp(),
    "WEBUI_AUTH": "False",
    "WEBUI_SECRET_KEY": "secret",
    "OPENAI_API_BASE_URLS": f"{URL}/v1",
    "OPENAI_API_KEYS": KEY,
    "ENABLE_OLLAMA_API": "False",
    "OFFLINE_MODE": "True",
    "RAG_EMBEDDING_ENGINE": "openai",  # without torch
}
server = subprocess.Popen(
    [Path(sys.executable).with_name("open-webui"), "serve", "--host=127.0.0.1", f"--port={port}"],
    env={**os.environ, **settings},
    cwd=settings["DATA_DIR"],
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
)
http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
numbers = itertools.count()


def ask(model, guidance, stream):
    params = {"temperature": 0, "max_tokens": TOKENS}
    if guidance is not None:  # as its form for a model does it: the value is text
        params["custom_params"] = {"guidance": json.dumps(guidance)}
    fields = {
        "id": f"mine-{next(numbers)}",
        "name": "Mine",
        "base_model_id": model,
        "params": params,
    }
    fields |= {"meta": {}, "access_grants": [], "is_active": True}
    http.post("/api/v1/models/create", json=fields).raise_for_status()
    http.get("/api/models").raise_for_status()  # it reads its models anew
    request = {"model": fields["id"], "messages": [{"role": "user", "content": PROMPT}]}
    answer = http.post("/api/chat/completions", json={**request, "stream": stream})
    answer.raise_for_status()
    if not stream:
        choice = answer.json()["choices"][0]
        return choice["message"]["content"], choice.get("guidance")
    text, kept = "", None
    for line in answer.text.splitlines():
        if line.startswith("data: {"):
            for choice in json.loads(line.removeprefix("data: "))["choices"]:
                text += choice["delta"].get("content") or ""
                kept = choice.get("guidance") or kept
    return text, kept


def wait():
    for _ in range(240):
        if server.poll() is not None:
            break
        try:
            if http.get("/health").is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    sys.exit("Open WebUI did not start")


try:
    wait()
    token = http.post("/api/v1/auths/signin", json={"email": "", "password": ""}).json()["token"]
    http.headers["Authorization"] = f"Bearer {token}"
    run(ask)
finally:
    server.terminate()
    server.wait(20)
