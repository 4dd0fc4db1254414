"""The cost of each kind of scorer: native, other tokenizer, text, over an upstream.

    python benchmarks/families.py

One run: a `trimtab serve demo` with a scorer of each kind (those that the demo does not have are
trained first, in some minutes), and a `trimtab serve --upstream` over that server. Every setting of
a round uses the same prompts and seeds; every round uses new seeds, because scorers of text cache
what they have read. Writes benchmarks/results/families.{json,md}.
"""

import json
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from black_box import started
from scipy import stats

from trimtab_models import demo
from trimtab_models.demo import foreign

RESULTS, WORK = Path(__file__).parent / "results", Path(".work/families")
PROMPTS, WAYS, ROUNDS, TOKENS, BETA, SEED = 32, 8, 5, 48, 4.0, 0
TEXT = ",family=text,reads=answer"
KINDS = {
    "sentiment": "native head (Llama)",
    "pythia": "head with another tokenizer (GPT-NeoX)",
    "roberta": "classifier of text (RoBERTa)",
    "deberta": "classifier of text (DeBERTa-v2)",
}


def run(
    http: httpx.Client, prompts: list[str], beta: float, scorer: str, seed: int
) -> dict[str, float]:
    """Seconds and scorer tokens per generated token, and candidates scored per step."""
    before, start = _forwarded(http, scorer), time.monotonic()

    def ask(i: int) -> dict[str, Any]:
        body = {"prompt": prompts[i], "max_tokens": TOKENS, "seed": seed + i, "beta": beta}
        candidates = {"k": 32, "mass": 0.99, "tail": "truncate"}
        answer = http.post("/generate", json={**body, "scorers": {scorer: 1.0}, **candidates})
        answer.raise_for_status()
        [choice] = answer.json()["choices"]
        return choice

    with ThreadPoolExecutor(WAYS) as pool:
        choices = list(pool.map(ask, range(len(prompts))))
    seconds = time.monotonic() - start
    tokens = sum(len(choice["token_ids"]) for choice in choices)
    scored = sum(choice["guidance"]["scored_tokens"] for choice in choices)
    return {
        "seconds": seconds / tokens,
        "scorer_tokens": (_forwarded(http, scorer) - before) / tokens,
        "scored": scored / tokens,
    }


def _forwarded(http: httpx.Client, name: str) -> int:
    statuses = http.get("/v1/scorers").json()["data"]
    return next(one["tokens_forwarded"] for one in statuses if one["id"] == name)


def measure(servers: Mapping[str, httpx.Client], prompts: list[str]) -> dict[str, list[Any]]:
    """Rounds of every setting; each round runs all settings."""
    settings = [("in the engine", "unguided", 0.0, "sentiment")]
    settings += [("in the engine", kind, BETA, kind) for kind in KINDS]
    settings += [("upstream", "unguided", 0.0, "sentiment")]
    settings += [("upstream", kind, BETA, kind) for kind in ("sentiment", "pythia")]
    results: dict[str, list[Any]] = {}
    for number in range(ROUNDS + 1):
        for where, label, beta, scorer in settings:
            result = run(servers[where], prompts, beta, scorer, SEED + 1000 * number)
            if number:  # the first round only warms up
                results.setdefault(f"{where}: {label}", []).append(result)
    return results


def report(results: Mapping[str, list[Any]], sizes: Mapping[str, float]) -> str:
    """The table."""
    base = np.array([result["seconds"] for result in results["in the engine: unguided"]])
    head = [
        "base",
        "scorer",
        "time ÷ unguided engine",
        "FLOPs floor",
        "scorer tokens a token",
        "scored",
    ]
    lines = [
        "# What kinds of scorers cost",
        "",
        f"`python benchmarks/families.py`: the demo base ({sizes['base'] / 1e6:.1f} M parameters), "
        f"{PROMPTS} prompts, {WAYS} at a time, at most {TOKENS} tokens, mass 0.99, β = {BETA:g}, "
        "on 2 cores, one thread a server. Time per token over that of the unguided engine in the "
        f"same round, mean ± standard error of {ROUNDS} rounds. *scored*: candidates a step. The "
        "floor is one of FLOPs: 1 + the scorer's share of the base's parameters × (candidates + 1) "
        "a step, what reading only what is new would take; with a base as small as this, whose "
        "step is mostly fixed costs, times may lie below it. *Upstream*: `trimtab serve "
        "--upstream` over that very server, by token id; a call a token, so its floor is its own "
        "unguided time.",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
    ]
    for label, rounds in results.items():
        where, kind = label.split(": ")
        ratio = np.array([result["seconds"] for result in rounds]) / base
        read = np.mean([result["scorer_tokens"] for result in rounds])
        scored = np.mean([result["scored"] for result in rounds])
        floor = ""
        if kind in KINDS and where == "in the engine":
            floor = f"{1 + sizes[kind] / sizes['base'] * (scored + 1):.2f}"
        time_ratio = f"{ratio.mean():.2f} ± {stats.sem(ratio):.2f}"
        cells = [where, KINDS.get(kind, "none (β = 0)"), time_ratio]
        counts = [f"{read:.1f}", f"{scored:.1f}"] if kind in KINDS else ["", ""]
        lines.append("| " + " | ".join([*cells, floor, *counts]) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    for kind in foreign.REWARDS:
        if not (WORK / kind).exists():
            foreign.build(kind, WORK / kind)
    paths = {name: str((WORK / name).resolve()) for name in foreign.REWARDS}
    engine = ["trimtab_server.cli", "serve", "demo", "--enable-prefix-caching"]
    upstream = ["trimtab_server.cli", "serve", "--tokenizer", str(demo.base())]
    engine += ["--scorer", f"pythia={paths['pythia']}"]
    for kind in ("roberta", "deberta"):
        engine += ["--scorer", f"{kind}={paths[kind]}{TEXT}"]
    upstream += ["--scorer", f"pythia={paths['pythia']}"]
    upstream += ["--scorer", f"sentiment={demo.scorers()['sentiment']}"]
    prompts = [demo.chat(prompt) for prompt in demo.prompts("test", PROMPTS, SEED)]
    with started(engine, "/ready") as http:
        url = f"{str(http.base_url).rstrip('/')}/v1"
        with started([*upstream, "--upstream", url, "--upstream-model", "demo"], "/ready") as other:
            results = measure({"in the engine": http, "upstream": other}, prompts)
        statuses = http.get("/v1/scorers").json()["data"]
    sizes = {one["id"]: one["parameters"] for one in statuses}
    sizes["base"] = sum(p.numel() for p in _base().parameters())
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "families.json").write_text(json.dumps({"sizes": sizes, "runs": results}) + "\n")
    (RESULTS / "families.md").write_text(report(results, sizes))
    print(report(results, sizes))


def _base() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(demo.base())


if __name__ == "__main__":
    main()
