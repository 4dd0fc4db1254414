"""How much guidance costs, as ratios within one run through the real engine.

    python benchmarks/decode.py [--quick]

Random weights, real architectures: a Llama base about 20 times the size of its Llama scorers.
For each setting, guided and unguided decode steps are timed in turn (paired repeats), beside

    floor    the bare forward of the scorer for the candidates plus one token a row, no prefix
    naive    re-forwarding the prefix with each candidate
    copies   k copies of each prefix's K/V, one token each, as most published code does

and   scoring efficiency = bare scorer forward ÷ (guided − unguided).
Writes benchmarks/results/decode.{json,md,png}.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

os.environ.update(
    VLLM_CPU_KVCACHE_SPACE="4",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_LOGGING_LEVEL="ERROR",
    VLLM_NO_USAGE_STATS="1",
)

import torch
from tqdm import tqdm
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM
from vllm import LLM, SamplingParams

from trimtab.params import GuidanceParams
from trimtab_models.checkpoint import ScorerInfo, load, save
from trimtab_models.networks import scalar_head, split

RESULTS = Path(__file__).parent / "results"
VOCAB, PREFIX = 8192, 128
NAMES = ("one", "two", "three")


def config(hidden: int, inner: int, layers: int, kv_heads: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=kv_heads,
        max_position_embeddings=512,
    )


def build(root: Path) -> None:
    torch.manual_seed(0)
    LlamaForCausalLM(config(1024, 2816, 12, 4)).save_pretrained(root / "base")
    for name in NAMES:
        save(scalar_head(config(320, 864, 5, 5)), None, ScorerInfo(), root / name)


def start(root: Path) -> LLM:
    return LLM(
        str(root / "base"),
        skip_tokenizer_init=True,
        dtype="float32",
        enforce_eager=True,
        max_model_len=384,
        max_num_seqs=32,
        max_num_batched_tokens=32 * (PREFIX + 1),
        disable_log_stats=True,
        enable_prefix_caching=False,
        logits_processors=["trimtab.adapters.vllm:GuidanceProcessor"],
        worker_extension_cls="trimtab.adapters.worker.GuidanceWorker",
        additional_config={"trimtab": {"scorers": {n: {"path": str(root / n)} for n in NAMES}}},
    )


class Decoder:
    """Times pure decode steps: all prompts are loaded before the clock starts."""

    def __init__(self, llm: LLM) -> None:
        self.engine, self.runs = llm.llm_engine, 0
        self.engine.collective_rpc("trimtab_scorers")

    def step_seconds(self, rows: int, guidance: GuidanceParams | None, steps: int) -> float:
        """Median seconds of a decode step with `rows` requests."""
        self.runs += 1
        generator = torch.Generator().manual_seed(self.runs)
        params = SamplingParams(
            temperature=1.0,
            max_tokens=steps + 2,
            ignore_eos=True,
            detokenize=False,
            extra_args=guidance.to_xargs() if guidance else None,
        )
        for row in range(rows):
            prompt = torch.randint(VOCAB, (PREFIX,), generator=generator).tolist()
            request = {"prompt_token_ids": prompt}
            self.engine.add_request(f"{self.runs}-{row}", request, params)
        self.engine.step()  # the prompts
        self.engine.step()  # warm
        times = []
        for _ in range(steps):
            began = time.perf_counter()
            self.engine.step()
            times.append(time.perf_counter() - began)
        while self.engine.has_unfinished_requests():
            self.engine.step()
        return statistics.median(times)


class Bare:
    """The scorer's network by itself, with transformers' own attention."""

    def __init__(self, path: Path) -> None:
        self.model, _ = load(path, attn_implementation="sdpa")
        self.network, self.head = split(self.model)

    def timed(self, run, repeats: int) -> float:
        with torch.inference_mode():
            run()
            times = []
            for _ in range(repeats):
                began = time.perf_counter()
                run()
                times.append(time.perf_counter() - began)
        return statistics.median(times)

    def floor(self, rows: int, k: int, repeats: int = 5) -> float:
        """[rows, k + 1] new tokens, each row seeing only itself: no prefix at all."""
        ids = torch.randint(VOCAB, (rows, k + 1))
        return self.timed(lambda: self.head(self.network(ids, use_cache=False)[0]), repeats)

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


def measure(decoder: Decoder, bare: Bare, rows: int, k: int, scorers: int, size: dict) -> dict:
    """Paired repeats of one setting."""
    guidance = GuidanceParams(
        scorers=dict.fromkeys(NAMES[:scorers], 1.0), beta=1.0, k=k, mass=1.0, tail="mean"
    )
    guided, unguided, floors = [], [], []
    for _ in range(size["repeats"]):
        unguided.append(decoder.step_seconds(rows, None, size["steps"]))
        floors.append(scorers * bare.floor(rows, k) if k > 1 else 0.0)
        guided.append(decoder.step_seconds(rows, guidance, size["steps"]))
    added = [g - u for g, u in zip(guided, unguided, strict=True)]
    result = {
        "requests": rows,
        "k": k,
        "scorers": scorers,
        "unguided_ms": 1e3 * statistics.median(unguided),
        "guided_ms": 1e3 * statistics.median(guided),
        "ratio": statistics.median(g / u for g, u in zip(guided, unguided, strict=True)),
        "floor_ratio": statistics.median(
            (u + f) / u for u, f in zip(unguided, floors, strict=True)
        ),
        "added_ms": 1e3 * statistics.median(added),
        "floor_ms": 1e3 * statistics.median(floors),
    }
    if k > 1:
        pairs = sorted(f / a for f, a in zip(floors, added, strict=True))
        result["efficiency"] = statistics.median(pairs)
        result["efficiency_range"] = [pairs[0], pairs[-1]]
    if scorers == 1 and k == 10:
        result["naive_ms"] = 1e3 * bare.naive(rows, k)
        result["copies_ms"] = 1e3 * bare.copies(rows, k)
        result["naive_over_ours"] = result["naive_ms"] / result["added_ms"]
        result["copies_over_ours"] = result["copies_ms"] / result["added_ms"]
    return result


def table(results: list[dict]) -> str:
    def cell(result: dict, name: str, form: str) -> str:
        return format(result[name], form) if name in result else "–"

    head = (
        "| requests | k | scorers | unguided ms/step | guided ms/step | guided ÷ unguided "
        "| floor ÷ unguided | scoring efficiency | naive ÷ ours | k copies ÷ ours |\n"
        + "|---" * 10
        + "|\n"
    )
    return head + "".join(
        f"| {r['requests']} | {r['k']} | {r['scorers']} | {r['unguided_ms']:.1f} "
        f"| {r['guided_ms']:.1f} | {r['ratio']:.2f} | {r['floor_ratio']:.2f} "
        f"| {cell(r, 'efficiency', '.2f')} | {cell(r, 'naive_over_ours', '.1f')} "
        f"| {cell(r, 'copies_over_ours', '.1f')} |\n"
        for r in results
    )


def draw(results: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 3.6), sharey=True, layout="constrained")
    for axis, scorers in zip(axes, (1, 3), strict=True):
        chosen = [r for r in results if r["scorers"] == scorers]
        places = range(len(chosen))
        axis.bar(places, [r["ratio"] for r in chosen], color="#3b6ea5", label="guided")
        axis.scatter(
            places,
            [r["floor_ratio"] for r in chosen],
            color="#d1495b",
            marker="_",
            s=300,
            linewidths=2.5,
            label="floor: base + bare scorer forward",
            zorder=3,
        )
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set_xticks(places, [f"{r['requests']}×\nk={r['k']}" for r in chosen], fontsize=8)
        axis.set_title(f"{scorers} scorer{'s' if scorers > 1 else ''}", fontsize=10)
        axis.set_xlabel("concurrent requests, candidates")
    axes[0].set_ylabel("time per step ÷ unguided")
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repeats, one scorer, k = 10")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    size = {"repeats": 3, "steps": 6} if arguments.quick else {"repeats": 7, "steps": 10}
    settings = [
        (rows, k, scorers)
        for scorers in ((1,) if arguments.quick else (1, 3))
        for rows in (1, 8, 32)
        for k in ((10,) if arguments.quick else (1, 10, 40))
    ]
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        build(root)
        decoder, bare = Decoder(start(root)), Bare(root / "one")
        results = [
            measure(decoder, bare, *setting, size) for setting in tqdm(settings, unit="setting")
        ]
        parameters = {
            "base": sum(
                p.numel() for p in LlamaForCausalLM(config(1024, 2816, 12, 4)).parameters()
            ),
            "scorer": bare.model.num_parameters(),
        }
    arguments.out.mkdir(parents=True, exist_ok=True)
    record = {
        "machine": f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "prefix": PREFIX,
        "parameters": parameters,
        **size,
        "results": results,
    }
    (arguments.out / "decode.json").write_text(json.dumps(record, indent=1) + "\n")
    (arguments.out / "decode.md").write_text(table(results))
    draw(results, arguments.out / "decode.png") if not arguments.quick else None
    print(table(results))


if __name__ == "__main__":
    main()
