"""A guided step with 1, 2 and 4 scorers on one backbone: run once, or once for each scorer.

    python benchmarks/shared_backbone.py [--out DIR]

The backbone is the one of attention.py (six layers, random weights), under heads with weights of
their own. *apart*: each scorer has a network and a prefix pool of its own, as before networks with
equal weights were shared; *shared*: one of both for all. *subsets*: every row uses half of the
scorers, every second row the other half. A repeat is one `Guide.step` of each form, in turn, on the
same rows and logits; then every row grows by its most likely token. A ratio is the geometric mean
over the repeats of apart ÷ shared of the same repeat, with its 95 % interval (t, of the
logarithms). Times are those of the process on the CPU, which other processes hardly change: use one
thread. With one scorer both forms are the same code. Writes shared_backbone.{json,md}.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from kept import machine
from random_models import VOCAB, scorer_network
from scipy import stats

from trimtab.guide import Guide
from trimtab.params import GuidanceParams
from trimtab.rows import Row
from trimtab.scorers import HeadScorer
from trimtab.scoring.backbones import Backbones
from trimtab_models.checkpoint import ScorerInfo

RESULTS = Path(__file__).parent / "results"
K, PREFIX, SEED, WARM = 10, 128, 0, 3


def scorers(count: int, *, shared: bool) -> dict[str, HeadScorer]:
    """Heads with random weights, on equal backbones."""
    backbones = Backbones()
    made = {}
    for i in range(count):
        model = scorer_network()
        torch.manual_seed(i + 1)
        torch.nn.init.normal_(model.score.weight)
        own = backbones if shared else Backbones()
        options = {"max_length": 1024, "pool_bytes": 2**28, "max_candidates": 64}
        made[f"s{i}"] = HeadScorer(ScorerInfo(), own.of(model, alone=False, **options))
    return made


def measure(count: int, rows: int, subsets: bool, repeats: int) -> dict[str, object]:
    """Milliseconds of each form's step, and their ratio."""
    rng = np.random.default_rng(SEED)
    guides = {form: Guide(scorers(count, shared=form == "shared")) for form in ("apart", "shared")}
    names = list(guides["shared"].registry.scorers)
    prompts = [rng.integers(VOCAB, size=PREFIX) for _ in range(rows)]
    batches = {}
    for form in guides:
        batches[form] = []
        for r, prompt in enumerate(prompts):
            own = names[r % 2 :: 2] if subsets else names
            fields = {"scorers": dict.fromkeys(own, 1.0), "beta": 1.0, "k": K, "mass": 1.0}
            batches[form].append(Row(GuidanceParams.parse(fields), PREFIX, prefix=prompt))
    times: dict[str, list[float]] = {form: [] for form in guides}
    before = dict.fromkeys(guides, 0)
    with torch.inference_mode():
        for repeat in range(WARM + repeats):
            base = torch.from_numpy(rng.normal(scale=3, size=(rows, VOCAB))).float()
            order = list(guides) if repeat % 2 else list(guides)[::-1]
            for form in order:
                logits = base.clone()
                start = time.process_time()
                guides[form].step(logits, list(enumerate(batches[form])))
                times[form].append(1e3 * (time.process_time() - start))
                if repeat == 0:
                    before[form] = _forwarded(guides[form])
            chosen = logits.argmax(1).tolist()
            for form in guides:
                for row, token in zip(batches[form], chosen, strict=True):
                    row.prefix = np.append(row.prefix, token)
    assert all(row.fault is None for form in guides for row in batches[form])
    ratios = np.log(np.array(times["apart"][WARM:]) / np.array(times["shared"][WARM:]))
    low, high = stats.t.interval(0.95, len(ratios) - 1, ratios.mean(), stats.sem(ratios))
    steps = WARM + repeats - 1
    return {
        "scorers": count,
        "rows": rows,
        "subsets": subsets,
        "repeats": repeats,
        **{f"{form}_ms": float(np.median(times[form][WARM:])) for form in guides},
        **{
            f"{form}_tokens": (_forwarded(guides[form]) - before[form]) / steps / rows
            for form in guides
        },
        "ratio": np.exp([ratios.mean(), low, high]).tolist(),
    }


def _forwarded(guide: Guide) -> int:
    return sum(scorer.tokens_forwarded for scorer in guide.registry.scorers.values())


def table(results: list[dict]) -> str:
    lines = [
        "# Scorers that share a backbone",
        "",
        f"`python benchmarks/shared_backbone.py`: a step of k = {K} candidates after {PREFIX} and "
        "more tokens, medians; apart ÷ shared is a geometric mean with its 95 % interval. Tokens "
        "are those that go through the networks for a row in a step. Milliseconds on the CPU, one "
        "thread.",
        "",
        "| scorers | rows | of each row | apart ms | shared ms | apart ÷ shared | tokens apart | "
        "shared | repeats |",
        "|---" * 9 + "|",
    ]
    for r in results:
        mean, low, high = r["ratio"]
        cells = [r["scorers"], r["rows"], "half" if r["subsets"] else "all"]
        cells += [f"{r['apart_ms']:.1f}", f"{r['shared_ms']:.1f}"]
        cells += [f"{mean:.2f} ({low:.2f} to {high:.2f})"]
        cells += [f"{r['apart_tokens']:.1f}", f"{r['shared_tokens']:.1f}", r["repeats"]]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument("--scorers", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    results: list[dict] = []
    record = {
        **machine(),
        "seed": SEED,
        "results": results,
    }
    settings = [(n, rows, False) for n in arguments.scorers for rows in arguments.rows]
    settings += [(n, rows, True) for n in arguments.scorers for rows in arguments.rows[1:] if n > 1]
    for setting in settings:
        results.append(measure(*setting, arguments.repeats))
        print(table(results[-1:]).splitlines()[-1], flush=True)
        (arguments.out / "shared_backbone.json").write_text(json.dumps(record, indent=1) + "\n")
        (arguments.out / "shared_backbone.md").write_text(table(results))


if __name__ == "__main__":
    main()
