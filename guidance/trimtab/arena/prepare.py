"""What must be there before methods meet: the base, its rollouts, and a scorer for each method."""

import multiprocessing
import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from tqdm import tqdm

from trimtab.arena.methods import TRAININGS
from trimtab.arena.scale import Scale
from trimtab.arena.task import Task, load

WORKERS = 2
"""Trainings at a time, one thread each: two small ones are quicker than one on both cores."""


def prepare(task: Task, out: Path, scale: Scale, names: Iterable[str]) -> dict[str, str]:
    """The named scorers of a task, trained if they are not there: name → path."""
    from trimtab_models.worlds import build  # noqa: PLC0415

    out.mkdir(parents=True, exist_ok=True)
    found = {name: task.scorers[name] for name in names if name in task.scorers}
    left = [name for name in names if name not in found]
    if left:
        base = build.build_base(task.world, out)
        build.roll_out(
            task.world,
            base,
            out / "rollouts.jsonl",
            prompts=scale.rollout_prompts,
            completions=scale.completions,
            seed=scale.seed,
        )
    missing = [name for name in left if not (out / "scorers" / name).exists()]
    if missing:
        _train_all(task, out, scale, missing)
    return found | {name: str(out / "scorers" / name) for name in left}


def _train_all(task: Task, out: Path, scale: Scale, names: list[str]) -> None:
    # The first of each kind writes the data that the others read.
    first = {TRAININGS[name].pairs: name for name in reversed(names)}
    waves = [list(first.values()), [name for name in names if name not in first.values()]]
    spawn = multiprocessing.get_context("spawn")
    with tqdm(total=len(names), desc="training", unit="scorer") as progress:
        for wave in waves:
            with ProcessPoolExecutor(WORKERS, spawn, _alone, (out / "training.log",)) as pool:
                tasks = [pool.submit(train, task.spec, out, scale, name) for name in wave]
                for done in as_completed(tasks):
                    done.result()
                    progress.update()


def _alone(log: Path) -> None:
    """One thread, and its own bars and logs out of the way."""
    import torch  # noqa: PLC0415

    torch.set_num_threads(1)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)


def train(spec: str, out: Path, scale: Scale, name: str) -> None:
    """One scorer of a task's gold reward; a process of its own calls this."""
    from trimtab_models.worlds import build  # noqa: PLC0415

    world, training = load(spec).world, TRAININGS[name]
    settings = dict(training.settings)
    if scale.epochs is not None:
        settings["epochs"] = scale.epochs[training.pairs]
    build.train(world, out, name, training.objective, world.gold, **settings)
