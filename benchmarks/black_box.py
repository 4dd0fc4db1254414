"""Steer a black-box model: tool calls of an upstream, bare and guided.

    python benchmarks/black_box.py .work/arena/tools   # the output of `trimtab arena tools`

A stock vLLM server serves the base; `trimtab serve --upstream` gets only its 20 most likely tokens
per step. Every setting uses the same prompts and seeds; success is exact (worlds/tools). Greedy
answers are generated one token per call and in blocks of 8, to measure how many calls blocks save.
Writes benchmarks/results/black_box.{json,md}.
"""

import argparse
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from scipy import stats

from trimtab_lab.worlds import WORLDS

RESULTS = Path(__file__).parent / "results"
TOP, BLOCK, SCALED_BETA, BUDGET, SEED = 20, 8, 8.0, 1.0, 0
FACTOR = 1.6  # success over the bare model's in the literature's black-box experiments
SCORERS = {"q": "q-distribution", "value": "td-lambda"}
NAMES = {"q": "return distribution of every next token (q)", "value": "value (VAS)"}
BARE = "bare upstream"


@contextmanager
def started(command: list[str], ready: str):
    """A Trimtab or vLLM server, until the block ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    env = os.environ | {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    env |= {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-m", *command, "--port", port], env=env)
    http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=600)
    try:
        for _ in range(600):
            try:
                if http.get(ready).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.5)
        else:
            raise SystemExit(f"{command[0]} did not become ready")
        yield http
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def calls(http: httpx.Client) -> float:
    """Calls to the upstream so far."""
    counts = re.findall(r"^trimtab_upstream_calls_total\S* (\S+)", http.get("/metrics").text, re.M)
    return sum(map(float, counts))


def run(http: httpx.Client, path: str, prompts: list[str], **fields: Any) -> dict[str, Any]:
    """Success [prompts][answers], and its cost in time, KL and calls."""
    world = WORLDS["tools"]
    counted = path == "/generate"
    before, start = calls(http) if counted else 0.0, time.monotonic()

    def ask(i: int) -> list[dict[str, Any]]:
        body = {"prompt": prompts[i], "max_tokens": world.max_tokens, "seed": 100 * i + SEED}
        answer = http.post(path, json={**body, **fields})
        answer.raise_for_status()
        return answer.json()["choices"]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(len(prompts))))
    n = sum(map(len, answers))
    success = world.rewards[world.gold]
    result: dict[str, Any] = {
        "fields": fields,
        "success": [
            [success(prompt, one["text"]) for one in group]
            for prompt, group in zip(prompts, answers, strict=True)
        ],
        "seconds": (time.monotonic() - start) / n,
    }
    if counted:
        records = [one["guidance"] for group in answers for one in group]
        result["kl"] = float(np.mean([record["kl"] for record in records]))
        result["unrevealed"] = float(np.mean([record["unrevealed"] for record in records]))
        result["calls"] = (calls(http) - before) / n
        result["text"] = [[one["text"] for one in group] for group in answers]
    return result


def report(runs: dict[str, dict[str, Any]], prompts: int, answers: int) -> str:
    lines = [
        "# A black-box base: tool calls",
        "",
        f"`python benchmarks/black_box.py`: {prompts} test prompts of the world *tools*, "
        f"{answers} answers each at temperature 1 (greedy: one), the {TOP} most likely tokens "
        "of a stock vLLM server revealed at each step. Success ± standard error over prompts; p: "
        "paired Wilcoxon test of guided > bare. *unrevealed* is the mean probability that was not "
        "seen.",
        "",
        "| scorer | temperature | success | ÷ bare | p | KL, nats | unrevealed | calls an answer "
        "| s an answer |",
        "|" + "---|" * 9,
    ]
    for label, result in runs.items():
        temperature = result["fields"]["temperature"]
        bare = np.mean(runs[f"{BARE}, temperature {temperature}"]["success"], axis=1)
        own = np.mean(result["success"], axis=1)
        ratio, p = "", ""
        if not label.startswith(BARE):
            ratio = f"{own.mean() / bare.mean():.2f}" if bare.mean() else "–"
            if (own != bare).any():
                p = f"{stats.wilcoxon(own, bare, alternative='greater').pvalue:.0e}"
        cells = [
            label.split(", temperature")[0],
            str(temperature),
            f"{own.mean():.3f} ± {stats.sem(own):.3f}",
            ratio,
            p,
            f"{result['kl']:.2f}" if "kl" in result else "",
            f"{result['unrevealed']:.1e}" if "kl" in result else "",
            f"{result['calls']:.1f}" if "kl" in result else "1",
            f"{result['seconds']:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    least = min(
        np.mean(result["success"]) / np.mean(runs[f"{BARE}, temperature 1"]["success"])
        for label, result in runs.items()
        if "calls" in result and result["fields"]["temperature"] == 1
    )
    met = "met" if least >= FACTOR else "NOT met"
    one, block = (runs[f"q, {way}, temperature 0"] for way in ("a token a call", "blocks of 8"))
    same = np.mean([a == b for a, b in zip(one["text"], block["text"], strict=True)])
    lines += [
        "",
        f"At least {FACTOR} × the bare upstream's success at temperature 1: {met} (the least is "
        f"{least:.2f} ×). Greedy answers in blocks of {BLOCK} equal those of a token a call in "
        f"{100 * same:.0f} % of prompts, for {block['calls'] / one['calls']:.2f} of the calls.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("arena", type=Path, help="directory of `trimtab arena tools`")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--answers", type=int, default=4)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    prompts = WORLDS["tools"].prompts("test", options.prompts, SEED)
    base = str(options.arena / "base")
    vllm = ["vllm.entrypoints.launchers.api_server.entry", "--model", base]
    vllm += ["--served-model-name", "tools", "--dtype", "float32", "--max-model-len", "256"]
    vllm += ["--max-num-seqs", "64", "--enforce-eager", "--disable-uvicorn-access-log"]
    runs = {}
    with ExitStack() as stack:
        upstream = stack.enter_context(started(vllm, "/health"))
        url = f"{str(upstream.base_url).rstrip('/')}/v1"
        ours = ["trimtab_server.cli", "serve", "--upstream", url]
        ours += ["--upstream-model", "tools", "--tokenizer", base, "--upstream-top", str(TOP)]
        for name, folder in SCORERS.items():
            ours += ["--scorer", f"{name}={options.arena / 'scorers' / folder}"]
        for temperature, n in ((1, options.answers), (0, 1)):
            bare = {"temperature": temperature, "n": n, "model": "tools"}
            label = f"{BARE}, temperature {temperature}"
            runs[label] = run(upstream, "/v1/completions", prompts, **bare)
        cut = {"k": 32, "mass": 0.99, "tail": "truncate"}
        guided = {"beta": SCALED_BETA, "normalize": True, **cut}
        with started(ours, "/ready") as http:
            for name in SCORERS:
                fields = {**guided, "scorers": {name: 1.0}, "temperature": 1, "n": options.answers}
                runs[f"{NAMES[name]}, temperature 1"] = run(http, "/generate", prompts, **fields)
            fields = {"kl_budget": BUDGET, "scorers": {"q": 1.0}, "temperature": 1, **cut}
            label = f"q, a budget of {BUDGET:g} nat, temperature 1"
            runs[label] = run(http, "/generate", prompts, **fields, n=options.answers)
            greedy = {**guided, "scorers": {"q": 1.0}, "temperature": 0}
            runs["q, a token a call, temperature 0"] = run(http, "/generate", prompts, **greedy)
        with started([*ours, "--upstream-block", str(BLOCK)], "/ready") as http:
            runs["q, blocks of 8, temperature 0"] = run(http, "/generate", prompts, **greedy)
    (options.out / "black_box.json").write_text(json.dumps(runs) + "\n")
    (options.out / "black_box.md").write_text(report(runs, options.prompts, options.answers))
    print(report(runs, options.prompts, options.answers))


if __name__ == "__main__":
    main()
