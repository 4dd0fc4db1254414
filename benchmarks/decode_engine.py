"""Decode steps of the real engine, guided and not, timed in turn."""

import os
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

os.environ.update(
    VLLM_CPU_KVCACHE_SPACE="4",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_LOGGING_LEVEL="ERROR",
    VLLM_NO_USAGE_STATS="1",
)

import torch
from kept import interval
from random_models import VOCAB
from transformers import AutoTokenizer, DynamicCache
from vllm import LLM, SamplingParams

from trimtab.params import GuidanceParams
from trimtab.xargs import to_xargs
from trimtab_models import demo
from trimtab_models.checkpoint import load
from trimtab_models.networks import split

PREFIX, STEPS = 128, 8
IMPOSSIBLE = 1.05
"""An efficiency above this is noise."""


def start(
    base: Path,
    scorers: Mapping[str, Path | Mapping[str, Any]],
    cache_bytes: int | None = None,
    **options: Any,
) -> LLM:
    """The engine of a base with scorers, each a path or the fields of a ScorerSpec."""
    specs = {
        name: {"path": str(spec)} if isinstance(spec, Path) else dict(spec)
        for name, spec in scorers.items()
    }
    section = {"scorers": specs} | ({} if cache_bytes is None else {"cache_bytes": cache_bytes})
    defaults = {
        "skip_tokenizer_init": True,
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 384,
        "max_num_seqs": 32,
        "block_size": 32,  # so that the prefix cache holds prompts of 128 tokens
        "max_num_batched_tokens": 32 * (PREFIX + 1),
        "disable_log_stats": True,
        "logits_processors": ["trimtab.adapters.vllm:GuidanceProcessor"],
        "worker_extension_cls": "trimtab.adapters.worker.GuidanceWorker",
        "additional_config": {"trimtab": section},
    }
    return LLM(str(base), **{**defaults, **options})


class Decoder:
    """Times pure decode steps: all prompts are loaded before the clock starts."""

    def __init__(self, llm: LLM, prompts: list[list[int]]) -> None:
        self.engine, self.prompts, self.runs = llm.llm_engine, prompts, 0
        self.engine.collective_rpc("trimtab_scorers")

    def step_seconds(
        self, rows: int, guidance: GuidanceParams | None, after=None, steps: int = STEPS
    ) -> list[float]:
        """Mean seconds of a decode step with `rows` requests, and of `after` right after it.

        The mean, not the median: with a mass below 1 most steps may have one candidate and cost
        nothing, while others score many.
        """
        self.runs += 1
        params = SamplingParams(
            temperature=1.0,
            max_tokens=steps + 3,
            min_tokens=steps + 3,
            detokenize=False,
            extra_args=to_xargs(guidance) if guidance else None,
        )
        for row in range(rows):
            request = {"prompt_token_ids": self.prompts[row]}
            self.engine.add_request(f"{self.runs}-{row}", request, params)
        for _ in range(2):  # prefill, and one step to warm up
            self.engine.step()
        times = [
            [seconds(self.engine.step), seconds(after) if after else 0.0] for _ in range(steps)
        ]
        while self.engine.has_unfinished_requests():
            self.engine.step()
        return [statistics.fmean(column) for column in zip(*times, strict=True)]

    def read(self, rows: int, guidance: GuidanceParams, steps: int = STEPS) -> float:
        """Tokens that all scorers read for each generated token."""
        before = self._forwarded()
        self.step_seconds(rows, guidance, steps=steps)
        return (self._forwarded() - before) / (steps + 3) / rows

    def _forwarded(self) -> int:
        """Tokens that all scorers have read so far."""
        [scorers] = self.engine.collective_rpc("trimtab_scorers")
        return sum(scorer["tokens_forwarded"] for scorer in scorers)


def seconds(run) -> float:
    start = time.perf_counter()
    with torch.inference_mode():
        run()
    return time.perf_counter() - start


class Bare:
    """A scorer's network alone, with transformers' own attention."""

    def __init__(self, path: Path) -> None:
        self.model, _ = load(path, attn_implementation="sdpa")
        self.network, self.head = split(self.model)

    def timed(self, run, repeats: int) -> float:
        seconds(run)
        return statistics.median(seconds(run) for _ in range(repeats))

    def floor(self, rows: int, k: int) -> None:
        """Forward [rows, k + 1] new tokens without a prefix."""
        ids = torch.randint(self.network.config.vocab_size, (rows, k + 1))
        self.head(self.network(ids, use_cache=False)[0])

    def naive(self, rows: int, k: int, repeats: int = 1) -> float:
        ids = torch.randint(VOCAB, (rows * k, PREFIX + 1))
        return self.timed(lambda: self.head(self.network(ids, use_cache=False)[0][:, -1]), repeats)

    def copies(self, rows: int, k: int, repeats: int = 3) -> float:
        prefix = torch.randint(VOCAB, (rows, PREFIX))
        with torch.inference_mode():
            past = self.network(prefix, use_cache=True).past_key_values
        layers = [(layer.keys, layer.values) for layer in past.layers]

        def run() -> None:
            cache = DynamicCache(layers)
            self.network(torch.randint(VOCAB, (rows, 1)), past_key_values=cache)
            cache = DynamicCache(layers)
            cache.batch_repeat_interleave(k)
            out = self.network(torch.randint(VOCAB, (rows * k, 1)), past_key_values=cache)
            self.head(out[0])

        return self.timed(run, repeats)


def rounds(
    decoder: Decoder,
    rows: int,
    guidances: Mapping[str, GuidanceParams],
    floor: Callable[[], object] | None,
    repeats: int,
    steps: int = STEPS,
) -> dict[str, dict[str, list[float]]]:
    """Guided in several ways, and unguided with the floor, in turn; the values of each repeat.

    Each repeat begins one further on, so that a machine that gets slower favours none.
    """
    order = [None, *guidances]
    times: dict[str, list[tuple[float, float, float]]] = {name: [] for name in guidances}
    for repeat in range(repeats + 1):  # the first one warms up
        first = repeat % len(order)
        guided = {}
        for name in (*order[first:], *order[:first]):
            if name is None:
                unguided, bare = decoder.step_seconds(rows, None, floor, steps)
            else:
                [guided[name], _] = decoder.step_seconds(rows, guidances[name], steps=steps)
        for name, spent in guided.items() if repeat else ():
            times[name].append((unguided, bare, spent))
    return {
        name: {
            "unguided_ms": [1e3 * u for u, _, _ in values],
            "guided_ms": [1e3 * g for _, _, g in values],
            "floor_ms": [1e3 * f for _, f, _ in values],
            "added_ms": [1e3 * (g - u) for u, _, g in values],
            "ratio": [g / u for u, _, g in values],
            "floor_ratio": [(u + f) / u for u, f, _ in values],
        }
        for name, values in times.items()
    }


def paired(
    decoder: Decoder,
    rows: int,
    guidance: GuidanceParams,
    floor: Callable[[], object] | None,
    repeats: int,
    steps: int = STEPS,
) -> dict[str, list[float]]:
    """Guided, unguided and floor, in turn; the values of each paired repeat."""
    return rounds(decoder, rows, {"": guidance}, floor, repeats, steps)[""]


def summary(values: Mapping[str, list[float]]) -> dict[str, Any]:
    """Mean and 95 % interval of each column; of the efficiency, where noise did not make it."""
    columns = dict(values)
    if any(columns["floor_ms"]):
        columns |= efficiency(values["floor_ms"], values["added_ms"])
    else:
        del columns["floor_ms"], columns["floor_ratio"]
    means = {name: interval(column) for name, column in columns.items()}
    if "efficiency" in means and means["efficiency"][2] > IMPOSSIBLE:
        del means["efficiency"]
    return {"repeats": len(values["ratio"])} | means


def efficiency(floor_ms: list[float], added_ms: list[float]) -> dict[str, list[float]]:
    """Floor ÷ added time of the repeats; none if guidance seemed to cost no time in one of them.

    Nothing is faster than its floor, so `summary` leaves out what seems to be, by more than noise.
    """
    if min(added_ms) <= 0:
        return {}
    return {"efficiency": [f / a for f, a in zip(floor_ms, added_ms, strict=True)]}


def demo_prompts(n: int) -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(demo.base())
    texts = [demo.chat(text) for text in demo.prompts("test", n, seed=9)]
    return [tokenizer(text, add_special_tokens=False).input_ids for text in texts]


def floors(bares: list[Bare], tokens: int) -> None:
    for bare in bares:
        bare.floor(1, tokens - 1)
