"""Reading a long prefix: time and memory, with a mask of [tokens, keys] and without.

    python benchmarks/prefill.py [--out DIR]

The scorer is that of attention.py, with random weights; it reads a new prefix and ten candidates,
in forwards of at most 2,048 tokens. *dense*: every forward has a mask of all its tokens and keys;
*spans*: the product (guidance/trimtab/scoring/causal.py). *sliding* is the same network with
windows of 1,024 tokens in all layers. A repeat reads one prefix in each form, in turn. Seconds are
those of the process on the CPU, which other processes hardly change: use one thread. Memory is
the peak of the process's resident set above what it had before the prefix. A ratio is the geometric
mean over the repeats of dense ÷ spans of the same repeat, with its 95 % interval (t, of the
logarithms). The difference is the largest between the candidates' hidden states of both forms.
Writes prefill.{json,md}.
"""

import argparse
import gc
import json
import math
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from kept import machine
from random_models import KV_HEADS, SCORER, VOCAB, scorer_network
from scipy import stats
from transformers import MistralConfig

from trimtab import memory
from trimtab.scoring import attention
from trimtab.scoring.backbone import Backbone
from trimtab_models.networks import scalar_head

RESULTS = Path(__file__).parent / "results"
K, SEED, MIB = 10, 0, 2**20
FORMS = {"dense": math.inf, "spans": attention.MANY}


def sliding() -> torch.nn.Module:
    """The network of attention.py with layers that slide."""
    torch.manual_seed(0)
    config = scorer_network().config.to_dict()
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    names += ("num_attention_heads", "num_key_value_heads", "max_position_embeddings")
    chosen = {name: config[name] for name in names}
    return scalar_head(MistralConfig(**chosen, sliding_window=1024))


def peak(reset: bool = False) -> int:
    """Bytes of the process's largest resident set, since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    [line] = [s for s in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in s]
    return int(line.split()[1]) * 1024


def measure(kind: str, length: int, repeats: int) -> dict[str, object]:
    """CPU seconds and peak memory of each form, and the ratio of their times."""
    served = Backbone(
        sliding() if kind == "sliding" else scorer_network(),
        max_length=length,
        pool_bytes=(length + 512) * 2 * SCORER["num_hidden_layers"] * KV_HEADS * 64 * 4,
        max_candidates=64,
    )
    served.pool.k.zero_()  # the pool's own memory is not what is measured
    served.pool.v.zero_()
    rng = np.random.default_rng(SEED)
    times: dict[str, list[float]] = {form: [] for form in FORMS}
    peaks: dict[str, list[float]] = {form: [] for form in FORMS}
    difference = 0.0
    for repeat in range(repeats + 1):
        text, candidates, states = rng.integers(VOCAB, size=length), rng.permutation(VOCAB)[:K], []
        for form in list(FORMS) if repeat % 2 else list(FORMS)[::-1]:
            served.reset()
            gc.collect()
            memory.give_back()
            with patch.object(attention, "MANY", FORMS[form]):
                before, start = peak(reset=True), time.process_time()
                states.append(served.hidden([0], [text], [candidates]))
                times[form].append(time.process_time() - start)
                peaks[form].append((peak() - before) / MIB)
        difference = max(difference, float((states[0] - states[1]).abs().max()))
    ratios = np.log(np.array(times["dense"][1:]) / np.array(times["spans"][1:]))
    low, high = stats.t.interval(0.95, len(ratios) - 1, ratios.mean(), stats.sem(ratios))
    return {
        "kind": kind,
        "tokens": length,
        "repeats": repeats,
        **{f"{form}_s": float(np.median(times[form][1:])) for form in FORMS},
        **{f"{form}_mib": float(np.median(peaks[form][1:])) for form in FORMS},
        "ratio": np.exp([ratios.mean(), low, high]).tolist(),
        "difference": difference,
    }


def table(results: list[dict]) -> str:
    lines = [
        "# Reading a long prefix",
        "",
        "`python benchmarks/prefill.py`: a scorer of six layers reads a new prefix; medians; dense "
        "÷ spans is a geometric mean with its 95 % interval. Seconds on the CPU, one thread. MiB: "
        "the peak above what the process had.",
        "",
        "| layers | tokens | dense s | spans s | dense ÷ spans | dense MiB | spans MiB | "
        "difference | repeats |",
        "|---" * 9 + "|",
    ]
    for r in results:
        mean, low, high = r["ratio"]
        cells = [r["kind"], r["tokens"], f"{r['dense_s']:.2f}", f"{r['spans_s']:.2f}"]
        cells += [f"{mean:.2f} ({low:.2f} to {high:.2f})"]
        cells += [f"{r['dense_mib']:.0f}", f"{r['spans_mib']:.0f}"]
        cells += [f"{r['difference']:.0e}", r["repeats"]]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--lengths", type=int, nargs="*", default=[512, 2048, 8192])
    parser.add_argument("--kinds", nargs="*", default=["full", "sliding"])
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    results: list[dict] = []
    record = {
        **machine(),
        "seed": SEED,
        "results": results,
    }
    for kind in arguments.kinds:
        for length in arguments.lengths:
            results.append(measure(kind, length, arguments.repeats))
            print(table(results[-1:]).splitlines()[-1], flush=True)
            (arguments.out / "prefill.json").write_text(json.dumps(record, indent=1) + "\n")
            (arguments.out / "prefill.md").write_text(table(results))


if __name__ == "__main__":
    memory.bound()
    main()
