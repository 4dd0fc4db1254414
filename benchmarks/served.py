"""Shared by the steering benchmarks: a real server of the demo, and figures as text."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
from scipy import stats

from trimtab_models import demo

MAX_TOKENS = 96


class Server:
    """`trimtab serve demo` with more flags; every run uses the same prompts and seeds."""

    def __init__(self, flags: list[str], prompts: int) -> None:
        self.prompts = demo.prompts("test", prompts, seed=5)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        command = [sys.executable, "-m", "trimtab_server.cli", "serve", "demo"]
        self.process = subprocess.Popen(
            [*command, "--port", port, *flags],
            env=os.environ | {"VLLM_NO_USAGE_STATS": "1"},
        )
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=300)
        for _ in range(600):
            try:
                if self.http.get("/ready").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.5)
        raise SystemExit("the server did not become ready")

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)

    def counters(self) -> dict[str, float]:
        """Counters of steps and tokens since the start."""
        text = self.http.get("/metrics").text
        totals = dict(re.findall(r"^(trimtab_\w*(?:steps|tokens)\w*_total) (\S+)", text, re.M))
        scorers = self.http.get("/v1/scorers").json()["data"]
        forwarded = {f"forwarded {s['id']}": s["tokens_forwarded"] for s in scorers}
        return {name: float(value) for name, value in totals.items()} | forwarded

    def run(self, **guidance) -> dict:
        """One answer per prompt: rewards [scorer, prompt], KL, and the work of the scorers."""
        prompts = self.prompts

        def ask(i: int) -> dict:
            body = {
                "messages": [{"role": "user", "content": prompts[i]}],
                "seed": i,
                "max_tokens": MAX_TOKENS,
                **guidance,
            }
            answer = self.http.post("/generate", json=body)
            answer.raise_for_status()
            return answer.json()["choices"][0]

        before = self.counters()
        with ThreadPoolExecutor(32) as pool:
            choices = list(pool.map(ask, range(len(prompts))))
        after = self.counters()
        spent = {name: after[name] - before[name] for name in after}
        tokens = sum(len(choice["token_ids"]) for choice in choices)
        used = [s for s in guidance.get("scorers", {}) if guidance.get("beta") != 0]
        steps = spent["trimtab_steps_total"]
        return {
            "guidance": guidance,
            "rewards": {
                name: [
                    reward(prompt, choice["text"])
                    for prompt, choice in zip(prompts, choices, strict=True)
                ]
                for name, reward in demo.rewards.items()
            },
            "kl": [choice["guidance"]["kl"] for choice in choices],
            "tokens": tokens,
            "scorer_tokens_per_token": sum(spent[f"forwarded {s}"] for s in used)
            / max(len(used), 1)
            / tokens,
            "skipped": 1 - spent["trimtab_scored_steps_total"] / steps if steps else None,
            "examples": [choice["text"] for choice in choices[:2]],
        }


def mean_se(values) -> str:
    return f"{np.mean(values):.2f} ± {stats.sem(values):.2f}"
