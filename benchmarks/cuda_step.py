"""The decode step on a GPU: what it costs, what it waits for, and the floor it could reach.

    python benchmarks/cuda_step.py [--device cuda] [--out DIR]

Random Llama scorers read rows of 512 tokens; the base is a tensor of random logits, so that only
the work of guidance is timed. Every setting runs a few decode steps; each step adds one token to
each row. Beside the step, in the same run:

    bare          transformers' own forward of rows · (k + 1) tokens, without any prefix
    bare graph    the same, as one CUDA graph
    floor         that graph with attention over the prefix: one graph a step, no host work, all
                  rows of the same length with K/V of their own
    packed        the step as on the CPU: packed, without graphs
    scorer        the scorer alone, from token ids to hidden states: as a graph, with fixed shapes
                  but without one, and packed

host waits    synchronising calls in one step, as torch.cuda.set_sync_debug_mode counts them
launches      kernels launched in one step

Numbers are compared with the CPU's: float32 (without TF32) and the served dtype.
Writes cuda_step.{json,md}.
"""

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AttentionInterface, LlamaConfig

from trimtab.candidates import select
from trimtab.guide import Guide
from trimtab.params import GuidanceParams
from trimtab.rows import Row
from trimtab.scorers import HeadScorer
from trimtab.scoring.backbone import Backbone
from trimtab.scoring.captured import FixedSteps
from trimtab_models.checkpoint import ScorerInfo
from trimtab_models.networks import scalar_head, split

RESULTS = Path(__file__).parent / "results"
VOCAB, PREFIX, STEPS, WARM = 32768, 512, 8, 3
SIZES = {
    "small": {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 6},
    "large": {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 24},
}


def network(size: str, dtype: torch.dtype, vocab: int = VOCAB) -> nn.Module:
    """A scorer with random weights; heads have 64 dimensions, four per K/V head."""
    heads = SIZES[size]["hidden_size"] // 64
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab,
        num_attention_heads=heads,
        num_key_value_heads=heads // 4,
        max_position_embeddings=1024,
        **SIZES[size],
    )
    return scalar_head(config).to(dtype)


def guide(model: nn.Module, device: str, rows: int) -> Guide:
    config = model.config
    token = 2 * config.num_hidden_layers * config.num_key_value_heads * 64 * model.dtype.itemsize
    backbone = Backbone(
        model,
        max_length=1024,
        pool_bytes=token * max(2048, rows * (PREFIX + 64)),
        max_candidates=64,
        device=device,
    )
    return Guide({"value": HeadScorer(ScorerInfo(), backbone)})


class Batch:
    """Rows of one guide, and random base logits for their steps."""

    def __init__(self, guide: Guide, rows: int, k: int, device: str, prefix: int = PREFIX) -> None:
        rng = np.random.default_rng(0)
        params = GuidanceParams(scorers={"value": 1.0}, beta=1.0, k=k, mass=1.0, tail="mean")
        params = params.resolve(guide.registry.scorers)
        self.guide, self.generator = guide, torch.Generator().manual_seed(0)
        self.rows = [
            Row(params, prefix, prefix=rng.integers(VOCAB, size=prefix)) for _ in range(rows)
        ]
        self.device = device

    def logits(self) -> Tensor:
        vocab = self.backbone.last + 1
        return (torch.randn(len(self.rows), vocab, generator=self.generator) * 2).to(self.device)

    @property
    def backbone(self) -> Backbone:
        return self.guide.registry.scorers["value"].backbone

    def score(self) -> None:
        """The scorer alone, for the rows as they are."""
        n = self.rows[0].params.k
        keys, prefixes = [row.key for row in self.rows], [row.prefix for row in self.rows]
        self.backbone.hidden(keys, prefixes, [np.arange(n)] * len(self.rows))

    def step(self, logits: Tensor) -> None:
        self.guide.step(logits, list(enumerate(self.rows)))
        if any(row.fault for row in self.rows):
            raise RuntimeError(str(next(row.fault for row in self.rows if row.fault)))

    def advance(self, logits: Tensor) -> None:
        for row, token in zip(self.rows, logits.argmax(-1).tolist(), strict=True):
            row.prefix = np.append(row.prefix, token)


def clock(device: str, run: Callable[[], object]) -> float:
    """Milliseconds of `run`, the device idle before and after."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    with torch.inference_mode():
        run()
    wait()
    return 1e3 * (time.perf_counter() - start)


def median(device: str, run: Callable[[], object], repeats: int = 10) -> float:
    clock(device, run)
    return statistics.median(clock(device, run) for _ in range(repeats))


def steps(batch: Batch) -> tuple[float, float]:
    """Median milliseconds of a step, and of the choice of its candidates alone."""
    times, chosen = [], []
    ks = [int(row.params.k) for row in batch.rows]
    k = torch.tensor(ks, device=batch.device)
    mass = torch.ones(len(batch.rows), device=batch.device)
    for _ in range(WARM + STEPS):
        logits = batch.logits()
        chosen.append(clock(batch.device, lambda logits=logits: select(logits, k, mass, max(ks))))
        times.append(clock(batch.device, lambda logits=logits: batch.step(logits)))
        batch.advance(logits)
    return statistics.median(times[WARM:]), statistics.median(chosen[WARM:])


@contextmanager
def counted_waits() -> Iterator[list[str]]:
    """Collects one warning for each call that waits for the device."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        waits: list[str] = []
        try:
            yield waits
        finally:
            torch.cuda.set_sync_debug_mode("default")
            waits += [f"{w.filename.rpartition('/')[2]}:{w.lineno}" for w in caught]


def waits_and_launches(batch: Batch) -> dict[str, object]:
    """What one step of a batch waits for and launches."""
    logits = batch.logits()
    torch.cuda.synchronize()
    with counted_waits() as waits:
        batch.step(logits)
    batch.advance(logits)
    logits = batch.logits()
    torch.cuda.synchronize()
    with torch.profiler.profile() as profile:
        batch.step(logits)
        torch.cuda.synchronize()
    batch.advance(logits)
    events = {event.key: event.count for event in profile.key_averages()}
    launches = sum(n for name, n in events.items() if name.startswith(("cudaLaunch", "cuLaunch")))
    places = {place: waits.count(place) for place in sorted(set(waits))}
    return {"host_waits": len(waits), "launches": launches, "waits_at": places}


class Floor:
    """A scorer's step with fixed shapes: each row's last token and k candidates, prefix cached."""

    NAME = "benchmark_floor"

    def __init__(self, model: nn.Module, rows: int, k: int, prefix: int | None) -> None:
        self.network, self.head = split(model)
        self.rows, self.queries, self.prefix = rows, k + 1, prefix
        config = self.network.config
        device, dtype = next(model.parameters()).device, model.dtype
        self.ids = torch.randint(config.vocab_size, (1, rows * (k + 1)), device=device)
        place = torch.tensor([[prefix or 0] + [(prefix or 0) + 1] * k], device=device)
        self.positions = place.repeat(1, rows)
        if prefix is not None:
            shape = (rows, config.num_key_value_heads, prefix + 1, 64)
            layers = range(config.num_hidden_layers)
            self.keys = [torch.randn(shape, device=device, dtype=dtype) for _ in layers]
            self.values = [torch.randn(shape, device=device, dtype=dtype) for _ in layers]
        self.out = torch.empty(0)

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, _mask, *, scaling, **_
    ):
        """query [1, heads, rows·(k+1), dim]; the last token's K/V are written, those of
        candidates are merged: w = σ(q·k_own·scale − lse), out = (1 − w)·out_prefix + w·v_own."""
        rows, n, dim = self.rows, self.queries, query.shape[-1]
        k_cache, v_cache = self.keys[module.layer_idx], self.values[module.layer_idx]
        kv, fold = key.shape[1], query.shape[1] // key.shape[1]
        key = key[0].view(kv, rows, n, dim).transpose(0, 1)  # [rows, kv, k+1, dim]
        value = value[0].view(kv, rows, n, dim).transpose(0, 1)
        k_cache[:, :, -1], v_cache[:, :, -1] = key[:, :, 0], value[:, :, 0]
        q = (
            query[0].view(kv, fold, rows, n, dim).permute(2, 0, 1, 3, 4)
        )  # [rows, kv, fold, k+1, dim]
        flat = q.reshape(rows, kv, fold * n, dim)
        out, lse = prefix_part(flat, k_cache, v_cache, scaling)
        out, lse = out.view(rows, kv, fold, n, dim), lse.view(rows, kv, fold, n)
        own = (q.float() * key[:, :, None].float()).sum(-1) * scaling
        weight = torch.sigmoid(own - lse)
        weight[..., 0] = 0  # the last token is in the cache already
        merged = torch.lerp(out.float(), value[:, :, None].float(), weight[..., None])
        packed = merged.to(query.dtype).permute(0, 3, 1, 2, 4).reshape(1, rows * n, kv * fold, dim)
        return packed, None

    def run(self) -> None:
        hidden = self.network(input_ids=self.ids, position_ids=self.positions, use_cache=False)[0]
        self.out = self.head(hidden)

    def __enter__(self) -> "Floor":
        self.before = self.network.config._attn_implementation
        if self.prefix is None:
            self.network.set_attn_implementation("sdpa")
        else:
            AttentionInterface.register(self.NAME, self.attend)
            self.network.set_attn_implementation(self.NAME)
        return self

    def __exit__(self, *_: object) -> None:
        self.network.set_attn_implementation(self.before)


def prefix_part(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Attention over all keys, and the log-sum-exp of its logits."""
    if q.is_cuda and q.dtype != torch.float32:
        out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, scale=scale)
        return out, lse
    logits = (q @ k.mT).float() * scale
    return (logits.softmax(-1).to(v.dtype) @ v), logits.logsumexp(-1)


def graph(run: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """Capture `run`, after three runs on a stream of its own."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side), torch.inference_mode():
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    captured = torch.cuda.CUDAGraph()
    with torch.inference_mode(), torch.cuda.graph(captured):
        run()
    return captured


def floors(model: nn.Module, device: str, rows: int, k: int) -> dict[str, float]:
    result = {}
    with Floor(model, rows, k, None) as bare:
        result["bare_ms"] = median(device, bare.run)
        if device == "cuda":
            result["bare_graph_ms"] = median(device, graph(bare.run).replay)
    with Floor(model, rows, k, PREFIX) as floor:
        result["floor_eager_ms"] = median(device, floor.run)
        if device == "cuda":
            result["floor_ms"] = median(device, graph(floor.run).replay)
    return result


def compared(model: nn.Module, device: str, rows: int, k: int) -> dict[str, object]:
    """The step and its scorer alone, with and without fixed shapes and a graph."""
    batch = Batch(guide(model, device, rows), rows, k, device)
    result: dict[str, object] = {}
    result["step_ms"], result["select_ms"] = steps(batch)
    result["scorer_ms"] = median(device, batch.score)
    if device == "cuda":
        result |= waits_and_launches(batch)
        with counted_waits() as waits:
            batch.score()
        result["scorer_waits"] = len(waits)
    fixed = FixedSteps(batch.backbone.network, batch.backbone.pool, graphs=False)
    batch.backbone.fixed = fixed
    result["scorer_eager_ms"] = median(device, batch.score)
    batch.backbone.fixed = None
    packed: dict[str, object] = {}
    packed["step_ms"], _ = steps(batch)
    packed["scorer_ms"] = median(device, batch.score)
    if device == "cuda":
        packed |= waits_and_launches(batch)
    return result | {f"packed_{name}": value for name, value in packed.items()}


def equality(dtype: torch.dtype) -> dict[str, object]:
    """The largest difference of fused logits, CUDA − CPU, over four steps of ragged rows."""
    worst, same, total = 0.0, 0, 0
    model = {d: network("small", dtype, 4096).to(d) for d in ("cpu", "cuda")}
    batches = {d: Batch(guide(model[d], d, 8), 8, 32, d, prefix=100) for d in ("cpu", "cuda")}
    for r, row in enumerate(batches["cpu"].rows):
        row.prefix = row.prefix[: 100 - 9 * r] % 4096
        batches["cuda"].rows[r].prefix = row.prefix.copy()
    for _ in range(4):
        base = batches["cpu"].logits()
        fused = {d: base.clone().to(d) for d in batches}
        for d, batch in batches.items():
            batch.step(fused[d])
            fused[d] = fused[d].cpu()
        worst = max(worst, float((fused["cuda"] - fused["cpu"]).abs().max()))
        same += int((fused["cuda"].argmax(-1) == fused["cpu"].argmax(-1)).sum())
        total += len(base)
        for batch in batches.values():
            batch.advance(fused["cpu"])
    return {"dtype": str(dtype), "worst": worst, "same_argmax": same, "rows": total}


def table(results: list[dict]) -> str:
    columns = {
        "scorer": "scorer",
        "rows": "rows",
        "k": "k",
        "step ms": "step_ms",
        "of it candidates": "select_ms",
        "bare ms": "bare_ms",
        "bare graph ms": "bare_graph_ms",
        "floor ms": "floor_ms",
        "step ÷ floor": "over_floor",
        "packed ms": "packed_step_ms",
        "packed ÷ step": "packed_over_step",
        "scorer ms": "scorer_ms",
        "without graph": "scorer_eager_ms",
        "packed": "packed_scorer_ms",
        "host waits": "host_waits",
        "packed waits": "packed_host_waits",
        "scorer waits": "scorer_waits",
        "launches": "launches",
        "packed launches": "packed_launches",
    }

    def cell(value: object) -> str:
        return "–" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)

    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    lines += ["| " + " | ".join(cell(r.get(c)) for c in columns.values()) + " |" for r in results]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 8, 32, 128])
    parser.add_argument("--k", type=int, nargs="*", default=[10, 32])
    parser.add_argument("--sizes", nargs="*", default=list(SIZES))
    arguments = parser.parse_args()
    device = arguments.device
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.backends.cuda.matmul.allow_tf32 = False
    record: dict[str, object] = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "prefix": PREFIX,
        "vocabulary": VOCAB,
    }
    if device == "cuda":
        record["equality"] = [equality(dtype) for dtype in (torch.float32, torch.bfloat16)]
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    results: list[dict] = []
    record["dtype"], record["results"] = str(dtype), results
    settings = [(s, r, k) for s in arguments.sizes for r in arguments.rows for k in arguments.k]
    for size, rows, k in tqdm(settings, unit="setting"):
        model = network(size, dtype).to(device)
        result = {"scorer": size, "rows": rows, "k": k, "parameters": model.num_parameters()}
        result |= floors(model, device, rows, k)
        result |= compared(model, device, rows, k)
        if device == "cuda":
            result["over_floor"] = result["step_ms"] / result["floor_ms"]
            result["packed_over_step"] = result["packed_step_ms"] / result["step_ms"]
        results.append(result)
        (arguments.out / "cuda_step.json").write_text(json.dumps(record, indent=1) + "\n")
        (arguments.out / "cuda_step.md").write_text(table(results))
    print(table(results))


if __name__ == "__main__":
    main()
