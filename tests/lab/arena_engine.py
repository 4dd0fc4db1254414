"""The bench on a real engine, in a process of its own; prints every run as a line of JSON.

python arena_engine.py DIRECTORY
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

from trimtab.logs import configure_logging

configure_logging()

from trimtab_lab.arena.bench import Bench  # noqa: E402
from trimtab_lab.arena.methods import METHODS  # noqa: E402
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


if __name__ == "__main__":
    main()
