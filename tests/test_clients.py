"""Stock clients against the demo server: the examples of docs/clients.md, and the table's probes.

`python scripts/setup_clients.py` makes the clients' environments; without them, these tests skip.
"""

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import KEY, environment

ROOT = Path(__file__).parents[1]
DOCS = (ROOT / "docs" / "clients.md").read_text()
CLIENTS = ROOT / ".clients"
EXAMPLES = {
    "openai (Python)": ("openai", 2),
    "openai (Node)": ("node", 2),
    "anthropic": ("openai", 2),
    "LangChain": ("langchain", 2),
    "LlamaIndex": ("llamaindex", 2),
    "LiteLLM": ("litellm", 2),
    "Vercel AI SDK": ("ai-sdk", 2),
    "pydantic-ai": ("pydantic-ai", 2),
    "instructor": ("instructor", 2),
    "DSPy": ("dspy", 1),
    "lm-eval": ("lm-eval", 1),
}
"""Section → environment, and how often its example shows the answer."""
WORDS = {"Where the record is", "vllm bench serve", "Open WebUI", "Browsers"}
"""Sections without an example that runs here word for word; probes run these clients."""
ASKED = {
    "model": "demo",
    "messages": [{"role": "user", "content": "Write a review of the cafe."}],
    "temperature": 0,
    "max_tokens": 24,
}
GUIDANCE = {"scorers": {"sentiment": 1.0}, "beta": 4}


def sections():
    parts = re.split(r"^## (.+)\n", DOCS, flags=re.M)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def example(section):
    """The language and the code of a section's first block that is a program."""
    fenced = re.findall(r"^```(\w+)\n(.*?)^```", sections()[section], re.M | re.S)
    return next((kind, code) for kind, code in fenced if kind in ("python", "js", "bash"))


def table():
    """benchmarks/clients.py."""
    spec = importlib.util.spec_from_file_location("clients", ROOT / "benchmarks" / "clients.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def needs(name):
    """Skip where a client is not set up."""
    ready = (CLIENTS / name / "ready").exists()
    return pytest.mark.skipif(not ready, reason=f"scripts/setup_clients.py {name} was not run")


def test_every_section_is_known():
    assert set(sections()) == {*EXAMPLES, *WORDS}
    for name in EXAMPLES:
        assert "localhost:8000" in example(name)[1]


def test_every_client_has_an_environment_and_a_probe():
    spec = importlib.util.spec_from_file_location("setup", ROOT / "scripts" / "setup_clients.py")
    setup = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(setup)
    known = {*setup.PYTHON, *setup.JAVASCRIPT}
    for client in table().CLIENT_LIST:
        assert client.environment is None or client.environment in known
        assert (ROOT / "benchmarks" / "clients" / client.probe).is_file()
    assert {environment for environment, _ in EXAMPLES.values()} <= known


def answer(server, **fields):
    got = server.http.post("/v1/chat/completions", json={**ASKED, **fields})
    return got.json()["choices"][0]["message"]["content"]


def command(kind, code, folder, work):
    """How to run an example in its environment."""
    if kind == "python":
        return [folder / "bin" / "python", "-c", code]
    if kind == "bash":
        return ["bash", "-c", f"set -euo pipefail\n{code}"]
    script = folder / "example.mjs"  # a module finds its packages beside itself
    script.write_text(code)
    return ["node", script]


@pytest.mark.clients
@pytest.mark.parametrize(
    "section", [pytest.param(name, marks=needs(of)) for name, (of, _) in EXAMPLES.items()]
)
def test_an_example_is_guided(server, section, tmp_path):
    name, times = EXAMPLES[section]
    kind, code = example(section)
    for old, new in (("http://localhost:8000", server.url), ('"none"', f'"{KEY}"')):
        code = code.replace(old, new)
    code = code.replace("'none'", f"'{KEY}'").replace("KEY=none", f"KEY={KEY}")
    folder = CLIENTS / name
    env = environment(
        PATH=f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        LITELLM_LOCAL_MODEL_COST_MAP="True",
        HF_HUB_OFFLINE="1",
    )
    env.pop("PYTHONPATH")
    run = command(kind, code, folder, tmp_path)
    done = subprocess.run(
        run, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    guided, base = answer(server, guidance=GUIDANCE), answer(server)
    if section == "instructor":  # which adds to the prompt
        guided, base = guided.removesuffix("."), base[: len(guided) - 1]
    assert guided not in base
    assert done.stdout.count(guided) >= times, done.stdout
    assert base not in done.stdout


@pytest.mark.clients
@pytest.mark.parametrize(
    "client",
    [
        pytest.param(one, marks=needs(one.environment or "openai"), id=one.title)
        for one in table().CLIENT_LIST
    ],
)
def test_a_row_of_the_table(server, client, monkeypatch):
    clients = table()
    if client.probe.endswith(".mjs") and shutil.which("node") is None:
        pytest.skip("node is not installed")
    monkeypatch.setattr(clients, "KEY", KEY)
    before = clients.guided_choices(server.url)
    got = clients.probe(client, server.url, clients.cells(None))
    counted = clients.guided_choices(server.url) - before
    base, guided = answer(server), answer(server, guidance=GUIDANCE)
    clients.judge(client, got, base, guided, counted)
    verdicts = {cell["verdict"] for name, cell in got.items() if name != "base"}
    assert "guided" in verdicts, got
    assert verdicts <= {"guided", "—"}, got
