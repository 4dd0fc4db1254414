"""The bench on a real engine, in a process of its own; prints every run as a line of JSON.

python arena_engine.py DIRECTORY
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

from trimtab.logs import configure_logging

configure_logging()

from trimtab.params import GuidanceParams  # noqa: E402
from trimtab_lab.arena import ranks  # noqa: E402
from trimtab_lab.arena.bench import Bench  # noqa: E402
from trimtab_lab.arena.methods import METHODS, NOTHING  # noqa: E402
from trimtab_lab.arena.runs import find, save  # noqa: E402
from trimtab_lab.arena.scale import Scale  # noqa: E402
from trimtab_lab.arena.task import ENGINE, Task  # noqa: E402
from trimtab_lab.worlds import WORLDS  # noqa: E402
from trimtab_models import demo  # noqa: E402

SENTIMENT = str(demo.scorers()["sentiment"])
SETTINGS = (
    ("base", 0.0),
    ("top-k 10", 0.0),
    ("pargs", 2.0),
    ("pargs-greedy", 2.0),
    ("best-of-4", 0.0),
    ("greedy", 0.0),
    ("temperature", 2.0),
    ("top-p", 0.2),
)


def main():
    out = Path(sys.argv[1])
    world = replace(WORLDS["reviews"], gold="sentiment")
    scale = Scale(0, 0, 0, 12, 20, 2, (), (2.0,))
    scorers = {"bradley-terry": SENTIMENT, "td-lambda": SENTIMENT}
    task = Task("reviews", world, engine={**ENGINE, "max_model_len": 256})
    bench = Bench(task, str(demo.base()), scorers, scale, out)
    for name, scaled_beta in SETTINGS:
        save(out, bench.run(METHODS[name], scaled_beta))
        run = find(out, name, scaled_beta, bench.settings(METHODS[name], scaled_beta))
        print(json.dumps(vars(run)), flush=True)
    samples = bench.base_samples()
    shapes = {name: values.shape for name, values in samples.items()}
    means = {name: values.mean() for name, values in samples.items()}
    print(json.dumps({"method": "samples", "shapes": shapes, "means": means}), flush=True)
    references = ranks.References(bench.prompts[:2], [[10, 400, 77], [5, 600]])  # any tokens
    unmoved = GuidanceParams(scorers={NOTHING: 1.0}, beta=1.0, k=4, mass=1.0, tail="mean")
    guided = ranks.guided(references, bench.base, bench.sampler, unmoved)
    plain = ranks.plain(references, bench.base)
    print(json.dumps({"method": "ranks", "guided": guided, "plain": plain}), flush=True)


if __name__ == "__main__":
    main()
