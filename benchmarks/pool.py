"""A scorer's step on the CPU when rows need more than the prefix pool; and admission to the pool.

    python benchmarks/pool.py [--before DIR] [--out DIR]

The scorer is that of decode.py, with random weights. All rows have prompts of their own, k = 10
candidates, and grow by one of them at each step. The load is what rows need, rows · (prefix + k)
tokens, over what the pool holds, at the middle one of the measured steps. A repeat is one step at
every load, in turn; a ratio is the median over the repeats of a step's time ÷ the time of the step
of the same repeat that fits (load 0.8), with quartiles in brackets. Tokens are those that go
through the network in a step ÷ those of the step that fits.

A new row's admission is timed beside a scan of all entries, over pools with more and more entries.

--before measures the packages in DIR, another version's checkout, too.
Writes pool.{json,md,png}. Takes five minutes on two idle cores; an interrupted run resumes from
.work/pool.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import torch
from kept import Kept
from random_models import KV_HEADS, SCORER, VOCAB, scorer_network
from tqdm import tqdm

from trimtab.scoring.backbone import Backbone
from trimtab.scoring.pool import PrefixPool, common_prefix

RESULTS = Path(__file__).parent / "results"
WORK = Path(__file__).parents[1] / ".work" / "pool"
K, LAYERS = 10, SCORER["num_hidden_layers"]
LOADS = (0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0)
ENTRIES = (32, 256, 2048)
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
    runs = record["runs"]
    lines = ["| rows | prefix | load | " + " | ".join(f"{n}: time, tokens" for n in runs) + " |"]
    lines.append("|---" * (3 + len(runs)) + "|")
    for settings in zip(*(run["steps"] for run in runs.values()), strict=True):
        cells = [str(settings[0][key]) for key in ("rows", "prefix", "load")]
        for r in settings:
            median, low, high = r["ratio"]
            cells.append(f"{median:.2f} ({low:.2f}–{high:.2f}), {r['tokens']:.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    rows = runs["after"]["admission"]
    lines += ["", "| entries | admission, µs | a scan, µs |", "|---|---|---|"]
    lines += [f"| {r['entries']} | {r['ours_us']:.0f} | {r['scan_us']:.0f} |" for r in rows]
    caption = (
        f"Time and tokens of a step ÷ those of the step that fits (load {LOADS[0]}): medians of "
        f"{record['repeats']} repeats, with quartiles; see pool.py."
    )
    return "\n".join([caption, "", *lines]) + "\n"


def draw(record: dict, path: Path) -> None:
    """Time of a step over the load, a panel for each setting."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    steps = record["runs"]["after"]["steps"]
    settings = list(dict.fromkeys((r["rows"], r["prefix"]) for r in steps))
    figure, axes = pyplot.subplots(
        1, len(settings), figsize=(5 * len(settings), 3.8), layout="constrained", squeeze=False
    )
    colors = {"before": "#d1495b", "after": "#3b6ea5"}
    for axis, (rows, prefix) in zip(axes[0], settings, strict=True):
        for name, run in record["runs"].items():
            some = [r for r in run["steps"] if (r["rows"], r["prefix"]) == (rows, prefix)]
            loads = [r["load"] for r in some]
            medians, lows, highs = np.array([r["ratio"] for r in some]).T
            errors = (medians - lows, highs - medians)
            axis.errorbar(
                loads, medians, errors, color=colors[name], marker="o", markersize=4, capsize=3
            )
            axis.annotate(
                name,
                (loads[-1], medians[-1]),
                (-4, 8),
                textcoords="offset points",
                color=colors[name],
                ha="right",
            )
        axis.axhline(1, color="grey", linewidth=0.7, linestyle=":")
        axis.axvline(1, color="grey", linewidth=0.7, linestyle=":")
        axis.set(yscale="log", xlabel="needed ÷ held by the pool", ylabel="step ÷ step that fits")
        ticks = (1, 2, 5, 10, 20, 50)
        axis.set_yticks(ticks, [str(tick) for tick in ticks])
        axis.minorticks_off()
        axis.set_title(f"{rows} requests, prefixes of {prefix} tokens", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def one(kept: Kept, settings: list[str], repeats: int, admissions: bool) -> None:
    """One version's results, in this process."""
    model = scorer_network()
    for setting in tqdm(settings, unit="setting"):
        rows, prefix = map(int, setting.split("x"))
        kept(f"{setting}, {repeats}", partial(measure, model, rows, prefix, repeats))
    if admissions:
        kept("admission", lambda: [admission(n) for n in ENTRIES])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, help="a checkout of another version")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--settings", nargs="*", default=["32x128", "8x512"])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--name", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.name:
        kept = Kept(WORK / f"{arguments.name}.json")
        one(kept, arguments.settings, arguments.repeats, arguments.name == "after")
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    record: dict = {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, no GPU",
        "load": os.getloadavg()[0],
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "repeats": arguments.repeats,
        "runs": {},
    }
    names = ("before", "after") if arguments.before else ("after",)
    for name in names:
        environment = dict(os.environ)
        if name == "before":
            packages = [str(arguments.before.resolve() / one) for one in ("guidance", "models")]
            environment["PYTHONPATH"] = os.pathsep.join(packages)
        numbers = ["--repeats", str(arguments.repeats), "--settings", *arguments.settings]
        subprocess.run(
            [sys.executable, __file__, "--name", name, *numbers], check=True, env=environment
        )
        known = Kept(WORK / f"{name}.json").known
        steps = [r for s in arguments.settings for r in known[f"{s}, {arguments.repeats}"]]
        record["runs"][name] = {"steps": steps, "admission": known.get("admission")}
    (arguments.out / "pool.json").write_text(json.dumps(record, indent=1) + "\n")
    (arguments.out / "pool.md").write_text(table(record))
    draw(record, arguments.out / "pool.png")
    print(table(record))
    shutil.rmtree(WORK)  # the next run measures anew


if __name__ == "__main__":
    main()
