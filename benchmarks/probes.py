"""The cost of probes, as ratios within one run through the real engine.

    python benchmarks/probes.py [--quick] [--out DIR]

The base is that of decode.py, with random weights; probes have a histogram of 11 returns. Guided
and unguided decode steps alternate (paired repeats), with the default candidates and with the whole
vocabulary. Writes benchmarks/results/probes.{json,md}. Takes ten minutes on an idle machine.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

import decode_engine
import numpy as np
import torch
from random_models import BASE, BINS, PROBES, TINY, VOCAB, base_of, probes_of
from scipy import stats
from tqdm import tqdm

from trimtab.params import GuidanceParams

RESULTS = Path(__file__).parent / "results"
REPEATS = 14


def table(results: list[dict]) -> str:
    lines = [
        "| requests | probes | k | unguided ms | guided ms | guided ÷ unguided |",
        "|---|---|---|---|---|---|",
    ]
    for r in results:
        times = f"{np.median(r['unguided_ms']):.1f} | {np.median(r['guided_ms']):.1f}"
        ratios = np.array(r["ratio"])
        ratio = f"{ratios.mean():.3f} ± {stats.sem(ratios):.3f}"
        lines.append(f"| {r['requests']} | {r['probes']} | {r['k']} | {times} | {ratio} |")
    lines += ["", f"Medians, and means ± standard errors of {len(ratios)} paired repeats."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small base, few repeats")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    settings = [
        (rows, probes, k)
        for rows in ((1, 8) if arguments.quick else (1, 8, 32))
        for probes, k in ((1, None), (8, None), (1, "all"))
    ]
    results = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        base = base_of(root / "base", TINY if arguments.quick else BASE)
        prompts = torch.randint(VOCAB, (32, decode_engine.PREFIX)).tolist()
        decoder = decode_engine.Decoder(decode_engine.start(base, probes_of(base, root)), prompts)
        for rows, count, k in tqdm(settings, unit="setting"):
            fields = {} if k is None else {"k": k}
            guidance = GuidanceParams(
                scorers=dict.fromkeys(PROBES[:count], 1.0), beta=1.0, **fields
            )
            repeats = 2 if arguments.quick else REPEATS
            result = decode_engine.paired(decoder, rows, guidance, None, repeats)
            results.append({"requests": rows, "probes": count, "k": guidance.k} | result)
    text = table(results)
    print(text)
    about = {"threads": torch.get_num_threads(), "load": os.getloadavg()[0], "bins": BINS}
    body = json.dumps({"about": about, "results": results}, indent=1)
    (arguments.out / "probes.json").write_text(body + "\n")
    (arguments.out / "probes.md").write_text(text)


if __name__ == "__main__":
    main()
