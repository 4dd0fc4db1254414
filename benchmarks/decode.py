"""The cost of guidance, as ratios within one run through the real engine.

    python benchmarks/decode.py [--quick]

The models are a Llama base about 20 times the size of its Llama scorers, with random weights, and
the demo. In each setting, guided and unguided decode steps alternate (paired repeats). They are
compared with

    floor    the bare forward of the scorer for the candidates plus one token per row, no prefix,
             right after an unguided step, so that CPU caches are in the same state as for guidance
    naive    re-forwarding the prefix with each candidate
    copies   k copies of each prefix's K/V, one token each, as in most published code

and   scoring efficiency = bare scorer forward ÷ (guided − unguided).
Writes benchmarks/results/decode.{json,md,png}.
"""

import argparse
import functools
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.update(
    VLLM_CPU_KVCACHE_SPACE="4",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_LOGGING_LEVEL="ERROR",
    VLLM_NO_USAGE_STATS="1",
)

import torch
from decode_report import draw, table
from safetensors import safe_open
from tqdm import tqdm
from transformers import AutoTokenizer, DynamicCache, LlamaConfig, LlamaForCausalLM
from vllm import LLM, SamplingParams

from trimtab.params import GuidanceParams
from trimtab.xargs import to_xargs
from trimtab_models import demo
from trimtab_models.checkpoint import ScorerInfo, load, save
from trimtab_models.networks import scalar_head, split

RESULTS = Path(__file__).parent / "results"
VOCAB, PREFIX, STEPS = 8192, 128, 8
DEMO_STEPS = 64
"""Of the demo, whose candidates vary from step to step."""
IMPOSSIBLE = 1.05
"""An efficiency above this is noise."""
NAMES = ("one", "two", "three")
BASE = {"hidden_size": 1280, "intermediate_size": 3456, "num_hidden_layers": 24}
SCORER = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 6}


def config(sizes: dict[str, int], vocab: int = VOCAB, positions: int = 512) -> LlamaConfig:
    """A Llama with heads of 64 dimensions, four per K/V head."""
    heads = sizes["hidden_size"] // 64
    return LlamaConfig(
        vocab_size=vocab,
        num_attention_heads=heads,
        num_key_value_heads=heads // 4,
        max_position_embeddings=positions,
        **sizes,
    )


def build(root: Path) -> dict[str, Path]:
    torch.manual_seed(0)
    LlamaForCausalLM(config(BASE)).save_pretrained(root / "base")
    return {
        name: save(scalar_head(config(SCORER)), None, ScorerInfo(), root / name) for name in NAMES
    }


def start(base: Path, scorers: Mapping[str, Path | Mapping[str, Any]], **options: Any) -> LLM:
    """The engine of a base with scorers, each a path or the fields of a ScorerSpec."""
    specs = {
        name: {"path": str(spec)} if isinstance(spec, Path) else dict(spec)
        for name, spec in scorers.items()
    }
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
        "additional_config": {"trimtab": {"scorers": specs}},
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


def paired(
    decoder: Decoder,
    rows: int,
    guidance: GuidanceParams,
    floor,
    repeats: int,
    steps: int = STEPS,
) -> dict[str, list[float]]:
    """Guided, unguided and floor, alternating; the values of each paired repeat."""
    times = []
    for _ in range(repeats + 1):  # the first one warms up
        unguided, bare = decoder.step_seconds(rows, None, floor, steps)
        times.append((unguided, bare, decoder.step_seconds(rows, guidance, steps=steps)[0]))
    return {
        "unguided_ms": [1e3 * u for u, _, _ in times[1:]],
        "guided_ms": [1e3 * g for _, _, g in times[1:]],
        "floor_ms": [1e3 * f for _, f, _ in times[1:]],
        "added_ms": [1e3 * (g - u) for u, _, g in times[1:]],
        "ratio": [g / u for u, _, g in times[1:]],
        "floor_ratio": [(u + f) / u for u, f, _ in times[1:]],
    }


def pairs(
    decoder: Decoder, rows: int, guidance: GuidanceParams, floor, repeats: int, steps: int = STEPS
) -> dict:
    """Guided, unguided and floor, alternating; medians of the paired repeats."""
    values = paired(decoder, rows, guidance, floor, repeats, steps)
    result = {name: statistics.median(column) for name, column in values.items()}
    if result["floor_ms"]:
        result |= efficiency(values["floor_ms"], values["added_ms"])
    return {"requests": rows, "repeats": repeats} | result


def efficiency(floor_ms: list[float], added_ms: list[float]) -> dict:
    """Floor ÷ added time: the median of the paired repeats, with the lowest and the highest.

    Nothing is faster than its floor: a median above `IMPOSSIBLE`, or a repeat in which guidance
    seemed to cost no time, is noise, and is left out.
    """
    if min(added_ms) <= 0:
        return {}
    shares = sorted(floor / added for floor, added in zip(floor_ms, added_ms, strict=True))
    median = statistics.median(shares)
    if median > IMPOSSIBLE:
        return {}
    return {"efficiency": median, "efficiency_range": [shares[0], shares[-1]]}


def measure(
    decoder: Decoder, bares: list[Bare], rows: int, k: int, scorers: int, repeats: int
) -> dict:
    """One setting of the random networks; with k = 1 no candidate is scored."""
    guidance = GuidanceParams(
        scorers=dict.fromkeys(NAMES[:scorers], 1.0), beta=1.0, k=k, mass=1.0, tail="mean"
    )
    bare, used = bares[0], bares[:scorers]
    floor = (lambda: [b.floor(rows, k) for b in used]) if k > 1 else None
    result = pairs(decoder, rows, guidance, floor, repeats)
    if scorers == 1 and k == 10 and rows <= 8:
        result["naive_ms"] = 1e3 * bare.naive(rows, k)
        result["copies_ms"] = 1e3 * bare.copies(rows, k)
        result["naive_over_ours"] = result["naive_ms"] / result["added_ms"]
        result["copies_over_ours"] = result["copies_ms"] / result["added_ms"]
    return {"model": "random", "scorers": scorers, "k": k, "mass": 1.0} | result


def floors(bares: list[Bare], tokens: int) -> None:
    for bare in bares:
        bare.floor(1, tokens - 1)


def demo_prompts(n: int) -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(demo.base())
    texts = [demo.chat(text) for text in demo.prompts("test", n, seed=9)]
    return [tokenizer(text, add_special_tokens=False).input_ids for text in texts]


def measure_demo(root: Path) -> None:
    """Measure the demo with mass 0.99 and with k = 10; write JSON to `root`.

    It runs in a separate process.
    """
    decoder = Decoder(start(demo.base(), demo.scorers()), demo_prompts(32))
    bares, results = [Bare(path) for path in demo.scorers().values()], []
    for scorers in (1, 3):
        names = list(demo.scorers())[:scorers]
        for rows in (1, 8, 32):
            for k, mass in ((32, 0.99), (10, 1.0)):
                guidance = GuidanceParams(
                    scorers=dict.fromkeys(names, 1.0), beta=4.0, k=k, mass=mass, tail="truncate"
                )
                read = decoder.read(rows, guidance, DEMO_STEPS) / scorers
                per_step = max(1, round(read * rows))
                floor = functools.partial(floors, bares[:scorers], per_step)
                result = pairs(decoder, rows, guidance, floor, 5, DEMO_STEPS)
                setting = {"model": "demo", "scorers": scorers, "k": k, "mass": mass}
                result["scorer_tokens_per_token"] = read
                results.append(setting | result)
    (root / "demo.json").write_text(json.dumps(results))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="only k = 10 and one scorer")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--demo-into", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.demo_into:
        measure_demo(arguments.demo_into)
        return
    settings = [
        (rows, k, scorers, 7 if (k, scorers) == (10, 1) else 3)
        for scorers in ((1,) if arguments.quick else (1, 3))
        for rows in (1, 8, 32)
        for k in ((10,) if arguments.quick else (1, 10, 40))
    ]
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        scorers = build(root)
        generator = torch.Generator().manual_seed(1)
        prompts = torch.randint(VOCAB, (32, PREFIX), generator=generator).tolist()
        decoder, bares = (
            Decoder(start(root / "base", scorers), prompts),
            [Bare(scorers[n]) for n in NAMES],
        )
        results = [measure(decoder, bares, *s) for s in tqdm(settings, unit="setting")]
        parameters = {"base": count(root / "base"), "scorer": bares[0].model.num_parameters()}
        if not arguments.quick:
            subprocess.run([sys.executable, __file__, "--demo-into", directory], check=True)
            results += json.loads((root / "demo.json").read_text())
    record = {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, no GPU",
        "torch": torch.__version__,
        "vllm": version("vllm-cpu"),
        "threads": torch.get_num_threads(),
        "prefix": PREFIX,
        "parameters": parameters,
        "results": results,
    }
    (arguments.out / "decode.json").write_text(json.dumps(record, indent=1) + "\n")
    (arguments.out / "decode.md").write_text(table(results))
    draw([r for r in results if r["model"] == "random"], arguments.out / "decode.png")
    print(table(results))


def count(path: Path) -> int:
    """Parameters of a saved network."""
    with safe_open(path / "model.safetensors", "pt") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118


if __name__ == "__main__":
    main()
