"""A scorer's step on the CPU when rows need more than the prefix pool; and admission to the pool.

    python benchmarks/pool.py [--name after] [--out DIR]

The scorer is that of decode.py, with random weights. All rows have prompts of their own, k = 10
candidates, and grow by one of them at each step. The load is what rows need, rows · (prefix + k)
tokens, over what the pool holds, at the middle one of the measured steps. A repeat is one step at
every load, in turn; a ratio is the median over the repeats of a step's time ÷ the time of the step
of the same repeat that fits (load 0.9), with quartiles in brackets. Tokens are those that go
through the network in a step ÷ those of the step that fits.

A new row's admission is timed beside a scan of all entries, over pools with more and more entries.

Results are kept under their name, so that a run of another version can stand beside this one's.
Writes pool.{json,md}.
"""

import argparse
import json
import os
import platform
import time
from pathlib import Path

import numpy as np
import torch
from attention import KV_HEADS, LAYERS, VOCAB, network

from trimtab.scoring.backbone import Backbone
from trimtab.scoring.pool import PrefixPool, common_prefix

RESULTS = Path(__file__).parent / "results"
K = 10
LOADS = (0.9, 1.0, 1.1, 1.5, 2.0)
WARM = 2
"""Steps before the first measured one."""


class Rows:
    """Rows that grow, over one pool."""

    def __init__(self, model, rows: int, prefix: int, load: float, steps: int) -> None:
        need = rows * (prefix + WARM + steps // 2 + K)
        self.served = Backbone(
            model,
            max_length=prefix + WARM + steps + 1,
            pool_bytes=int(need / load) * 2 * LAYERS * KV_HEADS * 64 * 4,
            max_candidates=K,
        )
        self.rng = np.random.default_rng(0)
        self.texts = list(self.rng.integers(VOCAB, size=(rows, prefix)))

    def step(self) -> tuple[float, int]:
        """Milliseconds and tokens of one step."""
        candidates = [self.rng.permutation(VOCAB)[:K] for _ in self.texts]
        before, start = self.served.tokens_forwarded, time.perf_counter()
        self.served.hidden(range(len(self.texts)), self.texts, candidates)
        spent = 1e3 * (time.perf_counter() - start)
        pairs = zip(self.texts, candidates, strict=True)
        self.texts = [np.append(text, own[0]) for text, own in pairs]
        return spent, self.served.tokens_forwarded - before


def measure(model, rows: int, prefix: int, repeats: int) -> list[dict]:
    """Every load: times and tokens over those of the step that fits."""
    loads = {load: Rows(model, rows, prefix, load, repeats) for load in LOADS}
    for _ in range(WARM):
        for some in loads.values():
            some.step()
    steps = np.array([[some.step() for some in loads.values()] for _ in range(repeats)])
    times, tokens = steps[..., 0], steps[..., 1]  # [repeats, loads]
    results = []
    for i, load in enumerate(LOADS):
        ratios = np.percentile(times[:, i] / times[:, 0], [50, 25, 75])
        results.append(
            {
                "rows": rows,
                "prefix": prefix,
                "load": load,
                "repeats": repeats,
                "ms": float(np.median(times[:, i])),
                "ratio": ratios.tolist(),
                "tokens": float(tokens[:, i].mean() / tokens[:, 0].mean()),
            }
        )
    return results


def admission(entries: int, length: int = 512, repeats: int = 64) -> dict:
    """Microseconds that a new row takes to find its common start, by the pool and by a scan."""
    rng = np.random.default_rng(0)
    pool = PrefixPool(layers=1, kv_heads=1, head_dim=1, max_bytes=8 * (entries + 9) * length)
    system = rng.integers(VOCAB, size=length // 2)  # instructions that all prompts share

    def prompt() -> np.ndarray:
        return np.append(system, rng.integers(VOCAB, size=length // 2))

    for key in range(entries):
        tokens = prompt()
        pool.reconcile(key, tokens)
        pool.extend(key, tokens, set())
    times = []
    for _ in range(repeats):
        tokens, start = prompt(), time.perf_counter()
        length_shared = len(pool.reconcile(entries, tokens).tokens)
        middle = time.perf_counter()
        others = (e.tokens for key, e in pool.entries.items() if key != entries)
        best = max(common_prefix(other, tokens) for other in others)
        times.append((middle - start, time.perf_counter() - middle))
        assert best - length_shared < 32
        pool.drop(entries)
    ours, scan = 1e6 * np.median(np.array(times), 0)
    return {"entries": entries, "ours_us": float(ours), "scan_us": float(scan)}


def table(record: dict) -> str:
    names = list(record["runs"])
    lines = ["| rows | prefix | load | " + " | ".join(f"{n}: time, tokens" for n in names)]
    lines = [lines[0] + " |", "|---" * (3 + len(names)) + "|"]
    for settings in zip(*(record["runs"][name]["steps"] for name in names), strict=True):
        cells = [str(settings[0][key]) for key in ("rows", "prefix", "load")]
        for r in settings:
            median, low, high = r["ratio"]
            cells.append(f"{median:.2f} ({low:.2f}–{high:.2f}), {r['tokens']:.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    rows = [r for name in names for r in record["runs"][name].get("admission", ())]
    if rows:
        lines += ["", "| entries | admission, µs | a scan, µs |", "|---|---|---|"]
        lines += [f"| {r['entries']} | {r['ours_us']:.0f} | {r['scan_us']:.0f} |" for r in rows]
    caption = "Time and tokens of a step ÷ those of the step that fits (load 0.9); see pool.py."
    return "\n".join([caption, "", *lines]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", default="after", help="of this run's results")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--settings", nargs="*", default=["32x128", "8x512"])
    parser.add_argument("--no-admission", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    file, model = arguments.out / "pool.json", network()
    record = json.loads(file.read_text()) if file.exists() else {"runs": {}}
    run = record["runs"][arguments.name] = {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, no GPU",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "steps": [],
    }
    for setting in arguments.settings:
        rows, prefix = map(int, setting.split("x"))
        run["steps"] += measure(model, rows, prefix, arguments.repeats)
    if not arguments.no_admission:
        run["admission"] = [admission(n) for n in (32, 256, 2048)]
    file.write_text(json.dumps(record, indent=1) + "\n")
    print(table(record))
    (arguments.out / "pool.md").write_text(table(record))


if __name__ == "__main__":
    main()
