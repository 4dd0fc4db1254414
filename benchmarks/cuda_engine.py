"""Guidance inside vLLM on a GPU: the demo's tokens, and the cost of a decode step.

    python benchmarks/cuda_engine.py --parts demo --out cpu      # on a CPU
    python benchmarks/cuda_engine.py --reference cpu/tokens.json  # on a GPU

demo    greedy answers to 32 prompts in float32, in six settings, written to tokens.json.
        --reference compares them with such a file, made on a CPU.
step    decode steps of a random Llama of 1.2 billion parameters in bfloat16, guided by one random
        scorer of 22 or 304 million, in three modes. Guided and unguided runs alternate.
        A time is the median of steps, with the device idle before and after each; in async, where
        steps overlap, it is the mean of a run. Results are medians of paired runs.

Writes cuda_engine.{json,md,png}. With --quick, networks are tiny, and a CPU is enough.

The stored results were made with vLLM 0.25.1 on its V1 runner, with two names added that this
version lacks: the module vllm.v1.worker.gpu.sample.logits_processor and the attribute
ParallelConfig.enable_batch_sharded_sampling. The base's attention was FlashAttention 3, and
Triton's in float32. The script needs the vLLM that pyproject.toml pins.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["TRITON_F32_DEFAULT"] = "ieee"  # Triton's attention must not round float32 to TF32

import torch
import transformers
import vllm
from cuda_step import PREFIX, RESULTS, VOCAB, clock
from decode_engine import Decoder
from demo_tokens import answers, compare
from random_models import config
from tqdm import tqdm
from transformers import LlamaForCausalLM
from vllm import LLM, SamplingParams

# Imported here, because vLLM hides the GPU while it imports a processor by its name.
import trimtab.adapters.vllm.processor  # noqa: F401
from trimtab.adapters.vllm.options import PROCESSOR, WORKER
from trimtab.params import GuidanceParams
from trimtab.xargs import to_xargs
from trimtab_models.checkpoint import ScorerInfo, save
from trimtab_models.drawing import INK, SHADES, Chart
from trimtab_models.networks import scalar_head

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
STEPS, REPEATS, KS = 12, 2, (10, 32)
VALUES = ("unguided_ms", "guided_ms", "ratio", "added_ms")
BASE = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 18}
SCORERS = {
    "small": {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6},
    "large": {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 24},
}
TINY = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}
MODES = {
    "graph": "CUDA graphs, synchronous scheduling",
    "async": "CUDA graphs, asynchronous scheduling",
    "eager": "No CUDA graphs, synchronous scheduling",
}


def machine() -> dict[str, str]:
    name = torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu"
    return {"device": name} | {m.__name__: m.__version__ for m in (torch, vllm, transformers)}


def build(root: Path, quick: bool) -> dict[str, int]:
    """Write the base's config.json and the scorers; parameters by name."""
    torch.manual_seed(0)
    base = config(TINY if quick else BASE, VOCAB, 1024)
    base.architectures = ["LlamaForCausalLM"]
    base.save_pretrained(root / "base")
    with torch.device("meta"):
        counts = {"base": LlamaForCausalLM(base).num_parameters()}
    for name, sizes in SCORERS.items():
        model = scalar_head(config(TINY if quick else sizes, VOCAB, 1024))
        counts[name] = model.num_parameters()
        save(model.to(torch.bfloat16), None, ScorerInfo(), root / name)
    return counts


class Steps(Decoder):
    """Times decode steps; the clock starts when every request has decoded."""

    def step_ms(self, rows: int, guidance: GuidanceParams | None, overlap: bool) -> list[float]:
        """Milliseconds of each step; if steps overlap, one number, their mean."""
        self.runs += 1
        params = SamplingParams(
            temperature=1.0,
            max_tokens=STEPS + 10,
            ignore_eos=True,
            detokenize=False,
            extra_args=to_xargs(guidance) if guidance else None,
        )
        for row in range(rows):
            request = {"prompt_token_ids": self.prompts[row]}
            self.engine.add_request(f"{self.runs}-{row}", request, params)
        decoding: set[str] = set()
        while len(decoding) < rows:
            decoding |= {o.request_id for o in self.engine.step() if o.outputs[0].token_ids}
        self.engine.step()
        if overlap:
            times = [clock(DEVICE, lambda: [self.engine.step() for _ in range(STEPS)]) / STEPS]
        else:
            times = [clock(DEVICE, self.engine.step) for _ in range(STEPS)]
        while self.engine.has_unfinished_requests():
            self.engine.step()
        return times


def measure(mode: str, root: Path, quick: bool) -> list[dict]:
    counts, overlap = (1, 4) if quick else (1, 8, 32, 128), mode == "async"
    graphs = {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}  # without torch.compile
    eager = mode == "eager" or DEVICE == "cpu"
    section = {
        "scorers": {name: {"path": str(root / name)} for name in SCORERS},
        "cache_bytes": 2**28 if quick else 2**33,
    }
    llm = LLM(
        str(root / "base"),
        skip_tokenizer_init=True,
        logits_processors=[PROCESSOR],
        worker_extension_cls=WORKER,
        additional_config={"trimtab": section},
        gpu_memory_utilization=0.4,
        dtype="bfloat16" if DEVICE == "cuda" else "float32",
        load_format="dummy",
        max_model_len=640,
        max_num_seqs=max(counts),
        max_num_batched_tokens=16384,
        async_scheduling=overlap,
        enforce_eager=eager,
        compilation_config=None if eager else graphs,
    )
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(VOCAB, (max(counts), PREFIX), generator=generator).tolist()
    decoder, results = Steps(llm, prompts), []
    grid = [(rows, scorer, k) for rows in counts for scorer in SCORERS for k in KS]
    for rows, scorer, k in tqdm(grid, desc=mode, unit="setting"):
        guidance = GuidanceParams(scorers={scorer: 1.0}, beta=1.0, k=k, mass=1.0, tail="mean")
        decoder.step_ms(rows, guidance, overlap)  # warms up
        runs = [
            [decoder.step_ms(rows, params, overlap) for params in (None, guidance)]
            for _ in range(REPEATS)
        ]
        pairs = [[statistics.median(times) for times in run] for run in runs]
        paired = [(u, g, g / u, g - u) for u, g in pairs]
        values = dict(zip(VALUES, map(statistics.median, zip(*paired, strict=True)), strict=True))
        if not overlap:
            least = [statistics.median(map(min, times)) for times in zip(*runs, strict=True)]
            values |= {"unguided_least_ms": least[0], "guided_least_ms": least[1]}
        result = {"mode": mode, "rows": rows, "scorer": scorer, "k": k}
        results.append(result | {name: float(f"{v:.4g}") for name, v in values.items()})
    [status] = llm.collective_rpc("trimtab_scorers")
    if any(scorer["faults"] for scorer in status):
        raise RuntimeError(f"a scorer failed: {status}")
    return results


def table(record: dict) -> str:
    sections = []
    columns = ["rows", "scorer", "k", "unguided ms", "guided ms", "guided ÷ unguided", "added ms"]
    for mode, title in MODES.items():
        rows = [
            [r["rows"], millions(record, r["scorer"]), r["k"], *(f"{r[v]:.2f}" for v in VALUES)]
            for r in record["results"]
            if r["mode"] == mode
        ]
        sections += [markdown(title, columns, rows)] if rows else []
    if equality := record.get("equality"):
        columns = ["setting", "answers", "token-equal", "faults"]
        columns += [f"largest difference of {what}" for what in ("KL", "scores", "base log π0")]
        rows = [[f"{v:.1e}" if isinstance(v, float) else v for v in r.values()] for r in equality]
        sections.append(markdown("The demo's answers, compared with the reference", columns, rows))
    return "\n".join(sections)


def markdown(title: str, columns: list[str], rows: list[list]) -> str:
    cells = (columns, ["---"] * len(columns), *rows)
    lines = [" | ".join("–" if c is None else str(c) for c in line) for line in cells]
    return f"## {title}\n\n" + "".join(f"| {line} |\n" for line in lines)


def millions(record: dict, scorer: str) -> str:
    return f"{record['parameters'][scorer] / 1e6:.0f} M"


def draw(record: dict, path: Path) -> None:
    chart = Chart(2, height=3.8, sharey=True)
    for panel, k in zip(chart.panels, KS, strict=True):
        for scorer, shade in zip(("small", "large"), SHADES, strict=False):
            for mode, style in zip(MODES, ("-", "--", ":"), strict=True):
                key = {"mode": mode, "scorer": scorer, "k": k}
                chosen = [r for r in record["results"] if key.items() <= r.items()]
                rows, ratios = ([r[name] for r in chosen] for name in ("rows", "ratio"))
                label = f"{millions(record, scorer)}, {mode}"
                panel.line(
                    label, rows, ratios, shade=shade, linestyle=style, marker="o", clip_on=False
                )
        panel.axes.axhline(1, color=INK, linewidth=0.8)
        panel.axes.set_xscale("log", base=2)
        panel.axes.set_xticks(rows, rows)
        panel.axes.minorticks_off()
        panel.axes.set(xlabel="concurrent requests", xlim=(0.8, rows[-1]))
        panel.title(f"k = {k}")
    chart.panels[0].axes.set(ylim=(0, None), ylabel="time per step ÷ unguided")
    chart.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=["demo", "step"], default=["demo", "step"])
    parser.add_argument("--reference", type=Path, help="a tokens.json, made on a CPU")
    parser.add_argument("--quick", action="store_true", help="tiny networks, fewer rows")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)  # a part or mode, its folder
    arguments = parser.parse_args()
    if arguments.run:
        part, root = arguments.run[0], Path(arguments.run[1])
        part_results = answers() if part == "demo" else measure(part, root, arguments.quick)
        (root / f"{part}.json").write_text(json.dumps(part_results))
        return
    out, quick = arguments.out, ["--quick"] * arguments.quick
    out.mkdir(parents=True, exist_ok=True)
    record = machine() | {"prefix": PREFIX, "steps": STEPS, "mass": 1.0, "results": []}
    with tempfile.TemporaryDirectory() as root:
        if "step" in arguments.parts:
            record["parameters"] = build(Path(root), arguments.quick)
        for part in [p for name in arguments.parts for p in (MODES if name == "step" else [name])]:
            subprocess.run([sys.executable, __file__, "--run", part, root, *quick], check=True)
            part_results = json.loads((Path(root) / f"{part}.json").read_text())
            if part != "demo":
                record["results"] += part_results
                continue
            (out / "tokens.json").write_text(json.dumps(machine() | part_results))
            if arguments.reference:
                other = json.loads(arguments.reference.read_text())
                record["reference"] = {name: other[name] for name in machine()}
                record["equality"] = compare(other, part_results)
    (out / "cuda_engine.json").write_text(json.dumps(record, indent=1) + "\n")
    (out / "cuda_engine.md").write_text(table(record))
    if record["results"]:
        draw(record, out / "cuda_engine.png")
    print(table(record))


if __name__ == "__main__":
    main()
