"""A scorer's step on the CPU by the form of its attention, alternating within one process.

    python benchmarks/attention.py [--out DIR]

The scorer is that of decode.py, with random weights; its pool holds random K/V of every prefix, so
that nothing but steady decode steps runs. Forms:

    masked    each row's keys, prefix and candidates, are gathered into new memory and masked
    kept      the same, gathered into kept memory
    packed    the product on the CPU: kept, and keys that several rows share are read once
    closed    the product's form on CUDA, without a graph: the last token is read again, prefix and
              own key are merged in closed form, all shapes are padded

Each repeat runs all forms once, in turn. A ratio is the median over repeats of masked ÷ form; in
brackets its quartiles. Writes attention.{json,md}.
"""

import argparse
import json
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from kept import machine
from random_models import KV_HEADS, SCORER, VOCAB, scorer_network

from trimtab.scoring import shared
from trimtab.scoring.backbone import Backbone
from trimtab.scoring.captured import FixedSteps
from trimtab.scoring.pool import PrefixPool

RESULTS = Path(__file__).parent / "results"
LAYERS = SCORER["num_hidden_layers"]
FORMS = ("masked", "kept", "packed", "closed")


def backbone(rows: int, prefix: int, kind: str) -> Backbone:
    """A scorer whose pool holds the prefixes of all rows."""
    tokens = (rows if kind == "distinct" else 1) * prefix + rows * 64 + 128
    served = Backbone(
        scorer_network(),
        max_length=prefix + 1,
        pool_bytes=tokens * 2 * LAYERS * KV_HEADS * 64 * 4,
        max_candidates=64,
    )
    served.pool.k.normal_()
    served.pool.v.normal_()
    return served


def gathered(
    pool: PrefixPool, layer: int, slots: torch.Tensor, temporary: bool
) -> tuple[torch.Tensor, ...]:
    return pool.k[layer].index_select(0, slots), pool.v[layer].index_select(0, slots)


@contextmanager
def form(name: str, served: Backbone):
    """Makes a scorer's steps take one form."""
    served.fixed = None
    if name == "closed":
        served.fixed = FixedSteps(served.network, served.pool, graphs=False)
    with patch.object(shared, "SAVED", shared.SAVED if name == "packed" else np.inf):
        if name == "masked":
            with patch.object(PrefixPool, "gather", gathered):
                yield
        else:
            yield


def measure(rows: int, prefix: int, k: int, kind: str, budget: float) -> dict[str, object]:
    """Milliseconds of each form's step, and the ratios to the masked one."""
    served, rng = backbone(rows, prefix, kind), np.random.default_rng(0)
    prompts = rng.integers(VOCAB, size=(rows if kind == "distinct" else 1, prefix - 1))
    prefixes = [np.append(prompts[r % len(prompts)], r) for r in range(rows)]
    for key, ids in enumerate(prefixes):  # cached without a forward: the K/V are random anyway
        served.pool.reconcile(key, ids)
        served.pool.extend(key, ids, set())
    candidates = [rng.permutation(VOCAB)[:k] for _ in range(rows)]

    def step() -> float:
        start = time.perf_counter()
        served.hidden(range(rows), prefixes, candidates)
        return 1e3 * (time.perf_counter() - start)

    names = [name for name in FORMS if kind == "shared" or name != "packed"]
    times: dict[str, list[float]] = {name: [] for name in names}
    start = time.perf_counter()
    while len(times["closed"]) < 4 or (
        time.perf_counter() - start < budget and len(times["closed"]) < 41
    ):
        for name in names:
            with form(name, served):
                times[name].append(step())
    times = {name: values[1:] for name, values in times.items()}  # the first warms up
    result: dict[str, object] = {"kind": kind, "prefix": prefix, "rows": rows, "k": k}
    result["repeats"] = len(times["masked"])
    for name in names:
        result[f"{name}_ms"] = float(np.median(times[name]))
        ratios = np.array(times["masked"]) / np.array(times[name])
        result[f"masked_over_{name}"] = np.percentile(ratios, [50, 25, 75]).tolist()
    return result


def table(results: list[dict]) -> str:
    ratios = [f"masked_over_{name}" for name in FORMS[1:]]
    head = ["prefixes", "tokens", "rows", "k", "masked ms"]
    head += [f"masked ÷ {name}" for name in FORMS[1:]]
    cell: Callable[[list[float] | None], str] = lambda r: (  # noqa: E731
        "–" if r is None else f"{r[0]:.2f} ({r[1]:.2f}–{r[2]:.2f})"
    )
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for r in results:
        cells = [r["kind"], r["prefix"], r["rows"], r["k"], f"{r['masked_ms']:.1f}"]
        cells += [cell(r.get(name)) for name in ratios]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prefixes", type=int, nargs="*", default=[128, 2048, 8192])
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument("--k", type=int, nargs="*", default=[10, 32])
    parser.add_argument("--kinds", nargs="*", default=["distinct", "shared"])
    parser.add_argument("--seconds", type=float, default=8.0, help="for each setting")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    results: list[dict] = []
    record = {
        **machine(),
        "results": results,
    }
    settings = [
        (rows, prefix, k, kind)
        for prefix in arguments.prefixes
        for kind in arguments.kinds
        for rows in arguments.rows
        for k in arguments.k
        if kind == "distinct" or rows > 1
    ]
    for setting in settings:
        results.append(measure(*setting, arguments.seconds))
        print(table(results[-1:]).splitlines()[-1], flush=True)
        (arguments.out / "attention.json").write_text(json.dumps(record, indent=1) + "\n")
    (arguments.out / "attention.md").write_text(table(results))


if __name__ == "__main__":
    main()
