"""SmolLM2 in vLLM on a GPU: the CPU's greedy tokens, and what guidance adds to a decode step.

    python benchmarks/cuda_real.py --parts answers --out cpu           # on a CPU
    python benchmarks/cuda_real.py --reference cpu/real_answers.json   # on a GPU

answers  greedy answers to 32 everyday prompts in float32, guided by a probe, by six lower layers
         of the base and by the function kindness, written to real_answers.json. --reference
         compares them with such a file, made on a CPU.
step     decode steps in bfloat16, with CUDA graphs and asynchronous scheduling, as served. Guided
         and unguided runs alternate (paired repeats). A time is the mean of a run's steps; results
         are medians over the pairs, with the smallest and largest ratio.

The probe and the layers' head have random weights, drawn by NumPy, so that they are the same
everywhere. Writes cuda_real.{json,md}. With --quick it is small enough for a CPU.

The stored results were made as those of cuda_engine.py: with vLLM 0.25.1 on its V1 runner, and with
VLLM_USE_FLASHINFER_SAMPLER=0. The steps and the answers were measured in two calls on one machine;
the function at 32 and 128 requests did not fit into its time.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["TRITON_F32_DEFAULT"] = "ieee"  # Triton's attention must not round float32 to TF32
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

import numpy as np
import torch
import transformers
import vllm
from tqdm import tqdm
from vllm import LLM, SamplingParams

# Imported here, because vLLM hides the GPU while it imports a processor by its name.
import trimtab.adapters.vllm.processor  # noqa: F401
from trimtab.adapters.vllm.options import PROCESSOR, WORKER
from trimtab.params import GuidanceParams
from trimtab.xargs import RECORD_KEY, to_xargs
from trimtab_models import bases, checkpoint, networks, pretrained, probe, smollm2
from trimtab_models.checkpoint import ScorerInfo
from trimtab_models.smollm2 import prompts
from trimtab_models.training.initial import keep_layers

RESULTS = Path(__file__).parent / "results"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PROBES = [f"probe{i}" for i in range(8)]
LAYERS, BINS, TOKENS, WARM, STEPS, REPEATS = 6, 25, 48, 6, 16, 3
BETAS = {"probe0": 8.0, "layers": 4.0, "kindness": 4.0}
GUIDED = {
    "probe": ({"probe0": 1.0}, {}),
    "probe, k all": ({"probe0": 1.0}, {"k": "all"}),
    "8 probes": (dict.fromkeys(PROBES, 0.125), {}),
    "6 lower layers": ({"layers": 1.0}, {}),
    "function": ({"kindness": 1.0}, {}),
}


def machine() -> dict[str, str]:
    name = torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu"
    return {"device": name} | {m.__name__: m.__version__ for m in (torch, vllm, transformers)}


def build(root: Path) -> None:
    """Write eight probes of SmolLM2, and its six lower layers with a new head."""
    base, rng = bases.base_path(smollm2.NAME), np.random.default_rng(0)

    def draw(weight: torch.Tensor, std: float) -> None:
        weight.data.copy_(torch.from_numpy(rng.normal(0, std, weight.shape)))

    for name in PROBES:
        network = probe.new(base, outputs=BINS)
        for weight in network.parameters():
            draw(weight, 0.1 if weight.dim() == 1 else 1 / weight.shape[-1] ** 0.5)
        draw(network.factors.weight, 0.5)
        info = ScorerInfo(family="probe", support=(-1.0, 1.0))
        checkpoint.save(network, None, info, root / name)
    layers = keep_layers(networks.scalar_head(base), LAYERS)
    draw(networks.split(layers)[1].weight, 0.02)
    checkpoint.save(layers, None, ScorerInfo(), root / "layers")


def start(root: Path, **options) -> LLM:
    paths = {name: {"path": str(root / name)} for name in (*PROBES, "layers")}
    scorers = paths | {"kindness": smollm2.functions()["kindness"]}
    if DEVICE == "cpu":
        options |= {"enable_chunked_prefill": False, "max_num_batched_tokens": 1024}
    else:
        options |= {"kv_cache_memory_bytes": 2**31, "gpu_memory_utilization": 0.1}
    llm = LLM(
        bases.base_path(smollm2.NAME),
        logits_processors=[PROCESSOR],
        worker_extension_cls=WORKER,
        additional_config={"trimtab": {"scorers": scorers, "scorer_timeout": 60}},
        max_model_len=256,
        max_num_seqs=128,
        **{"max_num_batched_tokens": 8192} | options,
    )
    llm.collective_rpc("trimtab_scorers")  # this also sets the processor's runner
    return llm


def texts(n: int) -> list[list[int]]:
    """Everyday prompts: the test ones, then training ones."""
    tokenizer = pretrained.tokenizer(bases.base_path(smollm2.NAME))
    chosen = [*prompts.prompts("test", 50, 0), *prompts.prompts("train", 80, 0)][:n]
    return [tokenizer(prompts.chat(text), add_special_tokens=False).input_ids for text in chosen]


def answers(root: Path, quick: bool) -> dict:
    """Greedy answers in float32, with their scores: setting → rows."""
    count, tokens = (4, 8) if quick else (32, TOKENS)
    llm, ids = start(root, dtype="float32", enforce_eager=True), texts(count)
    runs: dict[str, list[dict]] = {}
    for name in ("unguided", *BETAS):
        guidance = None
        if name in BETAS:
            guidance = GuidanceParams(scorers={name: 1.0}, beta=BETAS[name], trace=True)
        sampling = [
            SamplingParams(
                temperature=0.0,
                max_tokens=tokens,
                logprobs=2,
                extra_args={**to_xargs(guidance), RECORD_KEY: f"{name}-{i}"} if guidance else None,
            )
            for i in range(count)
        ]
        requests = [{"prompt_token_ids": prompt} for prompt in ids]
        runs[name] = []
        for i, output in enumerate(llm.generate(requests, sampling, use_tqdm=False)):
            [choice] = output.outputs
            best = [[value.logprob for value in step.values()] for step in choice.logprobs]
            row = {"tokens": list(choice.token_ids), "base": [step[0] for step in best]}
            if guidance:
                call = (f"{name}-{i}", ids[i], [row["tokens"]], True)
                [[record]] = llm.collective_rpc("trimtab_record", args=call)
                trace = record.get("trace") or []
                row |= {"kl": record.get("kl"), "error": record.get("error")}
                row["scores"] = [
                    dict(zip(step["candidates"], step["scores"].get(name, ()), strict=False))
                    for step in trace
                ]
            runs[name].append(row)
    return {"prompts": ids, "runs": runs}


def compare(reference: dict, here: dict) -> list[dict]:
    """By setting: equal answers, steered answers, and the largest differences of equal prefixes."""
    if reference["prompts"] != here["prompts"]:
        raise SystemExit("the reference has other prompts: make it with this version")
    results = []
    for name, rows in here["runs"].items():
        kl, scores, prefixes = [], [], 0
        for a, b in zip(reference["runs"][name], rows, strict=True):
            both = enumerate(zip(a["tokens"], b["tokens"], strict=False))
            end = 1 + next((n for n, (x, y) in both if x != y), len(b["tokens"]))
            prefixes += end - 1
            if a["tokens"] == b["tokens"] and a.get("kl") is not None:
                kl.append(abs(a["kl"] - b["kl"]))
            for x, y in zip(a.get("scores", [])[:end], b.get("scores", []), strict=False):
                scores += [abs(s - y[t]) for t, s in x.items() if t in y]
        unguided = [row["tokens"] for row in here["runs"]["unguided"]]
        results.append(
            {
                "setting": name,
                "answers": len(rows),
                "token-equal": sum(
                    a["tokens"] == b["tokens"]
                    for a, b in zip(reference["runs"][name], rows, strict=True)
                ),
                "equal tokens": prefixes,
                "tokens": sum(len(row["tokens"]) for row in rows),
                "unlike unguided": sum(
                    row["tokens"] != u for row, u in zip(rows, unguided, strict=True)
                ),
                "faults": sum(bool(row.get("error")) for row in rows),
                "largest KL difference": max(kl, default=None),
                "largest score difference": max(scores, default=None),
            }
        )
    return results


class Steps:
    """Times decode steps; the clock starts when every request has decoded."""

    def __init__(self, llm: LLM, ids: list[list[int]]) -> None:
        self.engine, self.prompts, self.runs = llm.llm_engine, ids, 0

    def step_ms(self, rows: int, guidance: GuidanceParams | None) -> float:
        """Mean milliseconds of a step with `rows` requests."""
        self.runs += 1
        params = SamplingParams(
            temperature=1.0,
            max_tokens=WARM + STEPS + 4,
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
        self.wait()
        begin = time.perf_counter()
        for _ in range(STEPS):
            self.engine.step()
        self.wait()
        seconds = time.perf_counter() - begin
        while self.engine.has_unfinished_requests():
            self.engine.step()
        return 1e3 * seconds / STEPS

    def faults(self) -> int:
        """Rows whose scorer has failed so far, which were unguided from then on."""
        [scorers] = self.engine.collective_rpc("trimtab_scorers")
        return sum(scorer["faults"] for scorer in scorers)

    def wait(self) -> None:
        if DEVICE == "cuda":
            torch.cuda.synchronize()


def steps(root: Path, quick: bool, deadline: float) -> list[dict]:
    """What is measured before the deadline, in seconds of time.monotonic()."""
    counts = (1, 4) if quick else (1, 8, 16, 32, 128)
    graphs = {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}  # without torch.compile
    options = {"dtype": "bfloat16", "async_scheduling": True, "compilation_config": graphs}
    if DEVICE == "cpu":
        options = {"dtype": "float32", "enforce_eager": True}
    llm = start(root, **options)
    decoder, results = Steps(llm, texts(max(counts))), []
    grid = [(name, rows) for name in GUIDED for rows in counts]
    for name, rows in tqdm(grid, desc="steps", unit="setting"):
        weights, fields = GUIDED[name]
        guidance = GuidanceParams(scorers=weights, beta=1.0, **fields)
        repeats = 1 if quick else REPEATS
        if time.monotonic() > deadline:
            print(f"the deadline has passed: {name} at {rows} is left out")
            continue
        before = decoder.faults()
        decoder.step_ms(rows, guidance)  # warms up
        pairs = [[decoder.step_ms(rows, p) for p in (None, guidance)] for _ in range(repeats)]
        ratios = sorted(g / u for u, g in pairs)
        unguided, guided = (statistics.median(times) for times in zip(*pairs, strict=True))
        values = {
            "unguided_ms": unguided,
            "guided_ms": guided,
            "ratio": statistics.median(ratios),
            "least": ratios[0],
            "most": ratios[-1],
        }
        values = {key: float(f"{value:.4g}") for key, value in values.items()}
        values["faults"] = decoder.faults() - before
        results.append({"guided by": name, "requests": rows, "repeats": repeats} | values)
        (root / "step.json").write_text(json.dumps(results))
    return results


def table(record: dict) -> str:
    sections = [f"{record['device']}, torch {record['torch']}, vllm {record['vllm']}, "
                f"transformers {record['transformers']}\n"]  # fmt: skip
    if record.get("step"):
        columns = ["guided by", "requests", "unguided ms", "guided ms", "guided ÷ unguided"]
        columns += ["faults"]
        rows = [
            [r["guided by"], r["requests"], f"{r['unguided_ms']:.2f}", f"{r['guided_ms']:.2f}",
             f"{r['ratio']:.2f} [{r['least']:.2f}, {r['most']:.2f}]", r["faults"]]
            for r in record["step"]
        ]  # fmt: skip
        sections.append(markdown("A decode step in bfloat16", columns, rows))
    if equality := record.get("equality"):
        rows = [[f"{v:.1e}" if isinstance(v, float) else v for v in r.values()] for r in equality]
        other = record["reference"]
        title = "Greedy answers in float32, beside the reference "
        title += f"({other['device']}, torch {other['torch']}, vllm {other['vllm']})"
        sections.append(markdown(title, list(equality[0]), rows))
    return "\n".join(sections)


def markdown(title: str, columns: list[str], rows: list[list]) -> str:
    cells = (columns, ["---"] * len(columns), *rows)
    lines = [" | ".join("–" if c is None else str(c) for c in line) for line in cells]
    return f"## {title}\n\n" + "".join(f"| {line} |\n" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    both = ["step", "answers"]
    parser.add_argument("--parts", nargs="+", choices=both, default=both)
    parser.add_argument("--reference", type=Path, help="a real_answers.json, made on a CPU")
    parser.add_argument("--quick", action="store_true", help="few short answers, few rows")
    parser.add_argument("--seconds", type=float, default=600.0, help="for the steps, at most")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)  # a part, its folder
    arguments = parser.parse_args()
    if arguments.run:
        part, root = arguments.run[0], Path(arguments.run[1])
        if part == "answers":
            part_results = answers(root, arguments.quick)
        else:
            part_results = steps(root, arguments.quick, time.monotonic() + arguments.seconds)
        (root / f"{part}.json").write_text(json.dumps(part_results))
        return
    out, flags = arguments.out, ["--quick"] * arguments.quick
    out.mkdir(parents=True, exist_ok=True)
    record = machine() | {"tokens": TOKENS, "steps": STEPS, "betas": BETAS}
    with tempfile.TemporaryDirectory() as root:
        build(Path(root))
        for part in arguments.parts:
            command = [sys.executable, __file__, "--run", part, root, *flags]
            subprocess.run([*command, "--seconds", str(arguments.seconds)], check=True)
            part_results = json.loads((Path(root) / f"{part}.json").read_text())
            if part == "step":
                record["step"] = part_results
                continue
            (out / "real_answers.json").write_text(json.dumps(machine() | part_results))
            if arguments.reference:
                other = json.loads(arguments.reference.read_text())
                record["reference"] = {name: other[name] for name in machine()}
                record["equality"] = compare(other, part_results)
        (out / "cuda_real.json").write_text(json.dumps(record, indent=1) + "\n")
        (out / "cuda_real.md").write_text(table(record))
    print(table(record))


if __name__ == "__main__":
    main()
