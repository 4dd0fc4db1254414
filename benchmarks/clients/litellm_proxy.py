"""OpenAI's client → LiteLLM's proxy → Trimtab."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
from openai import OpenAI
from probe import KEY, PROMPT, TOKENS, URL, extra, run

MASTER = "sk-of-the-proxy"
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
names = sorted({cell["model"] for cell in json.loads(sys.argv[1])})
config = Path(tempfile.mkdtemp()) / "config.json"
served = {"api_base": f"{URL}/v1", "api_key": KEY}
models = [{"model_name": n, "litellm_params": {"model": f"openai/{n}", **served}} for n in names]
config.write_text(json.dumps({"model_list": models}))
command = Path(sys.executable).with_name("litellm")
proxy = subprocess.Popen(
    [command, "--config", config, "--host", "127.0.0.1", "--port", str(port)],
    env={
        **os.environ,
        "LITELLM_MASTER_KEY": MASTER,
        "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}",
    },
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
)
client = OpenAI(base_url=f"http://127.0.0.1:{port}", api_key=MASTER, max_retries=0)


def ask(model, guidance, stream):
    request = {
        "model": model,
        "messages": [{"role": "user", "content": PROMPT}],
        "temperature": 0,
        "max_tokens": TOKENS,
        **extra(guidance),
    }
    if not stream:
        answer = client.chat.completions.create(**request)
        return answer.choices[0].message.content, getattr(answer.usage, "guidance", None)
    text = ""
    for event in client.chat.completions.create(**request, stream=True):
        text += "".join(choice.delta.content or "" for choice in event.choices)
    return text, None


try:
    for _ in range(240):
        if proxy.poll() is not None:
            sys.exit("the proxy did not start")
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health/liveliness").is_success:
                break
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    run(ask)
finally:
    proxy.terminate()
    proxy.wait(20)
