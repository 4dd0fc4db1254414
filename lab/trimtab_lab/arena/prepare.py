"""Prepare an arena: the base, its rollouts, and a scorer for each method."""

import os
from collections.abc import Iterable
from concurrent.futures import as_completed
from pathlib import Path

from tqdm import tqdm

from trimtab_lab.arena import real
from trimtab_lab.arena.bench import Spec
from trimtab_lab.arena.methods import COMPOSED, SUMS, part, rounds, trainings
from trimtab_lab.arena.refine import guided
from trimtab_lab.arena.scale import Scale
from trimtab_lab.arena.task import Task, load
from trimtab_lab.arena.workers import pool
from trimtab_lab.worlds import World
from trimtab_models import data

WORKERS = max(1, min(4, os.cpu_count() or 1))
"""Concurrent trainings, one thread each: two small ones are faster than one on both cores, and
several keep a GPU busy, as each waits for its launches."""


def prepare(task: Task, out: Path, scale: Scale, required: Iterable[str]) -> dict[str, Spec]:
    """The scorers of a task, trained if absent: name → path, or the fields of a composed one."""
    out.mkdir(parents=True, exist_ok=True)
    sums = SUMS.get(task.world.name, {}) if COMPOSED in required else {}
    names = dict.fromkeys([*(name for name in required if name != COMPOSED), *map(part, sums)])
    supplied: dict[str, Spec] = {name: task.scorers[name] for name in names if name in task.scorers}
    trained = [name for name in names if name not in supplied]
    if trained:
        _roll_out(task, out, scale)
    missing = [name for name in trained if not (out / "scorers" / name).exists()]
    if missing:
        _train_all(task, out, scale, _with_firsts(task, out, missing))
    scorers: dict[str, Spec] = {name: str(out / "scorers" / name) for name in trained}
    if sums:
        path = "+".join(f"{part(name)}:{weight!r}" for name, weight in sums.items())
        scorers[COMPOSED] = {"path": path, "family": "composite"}
    return supplied | scorers


def _roll_out(task: Task, out: Path, scale: Scale) -> None:
    """The rollouts of a world; a real base samples them by vLLM, in a process that ends then."""
    from trimtab_lab.worlds import build

    base, path = build.build_base(task.world, out), out / "rollouts.jsonl"
    if task.world.real:
        if not path.exists():
            with pool(1) as workers:
                workers.submit(real.roll_out, task.spec, path, scale).result()
        return
    prompt_factor, completion_factor = task.world.rollout_factors
    build.roll_out(
        task.world,
        base,
        path,
        prompts=scale.rollout_prompts * prompt_factor,
        completions=int(scale.completions * completion_factor),
        seed=scale.seed,
    )


def _with_firsts(task: Task, out: Path, names: list[str]) -> list[str]:
    """The names, after the scorers that they refine if those do not exist."""
    firsts = [trainings(task.world.name)[name].refines for name in names]
    needed = [first for first in firsts if first and not (out / "scorers" / first).exists()]
    before = _with_firsts(task, out, needed) if needed else []
    return list(dict.fromkeys([*before, *names]))


def _train_all(task: Task, out: Path, scale: Scale, names: list[str]) -> None:
    refined: dict[int, list[str]] = {}
    for name in names:
        refined.setdefault(rounds(task.world.name, name), []).append(name)
    plain = refined.pop(0, [])
    # The first training of each kind writes the data that the others read.
    first = {_kind(task, name): name for name in reversed(plain)}
    waves = [list(first.values()), [name for name in plain if name not in first.values()]]
    waves += [refined[n] for n in sorted(refined)]
    with tqdm(total=len(names), desc="training", unit="scorer") as progress:
        for wave in waves:
            with pool(WORKERS, out / "training.log") as workers:
                tasks = [workers.submit(train, task.spec, out, scale, name) for name in wave]
                for done in as_completed(tasks):
                    done.result()
                    progress.update()


def _share(world: World, out: Path, objective: str, reward: str, share: float) -> Path:
    """The first answers of a training set: of each prompt as many, as these are not adjacent."""
    from trimtab_lab.worlds import build

    path = out / "data" / f"{reward}-{share:g}.jsonl"
    if not path.exists():
        records = list(data.read(build.training_data(world, out, objective, reward)))
        data.write(path, records[: round(share * len(records))])
    return path


def _kind(task: Task, name: str) -> tuple[bool, str | None]:
    training = trainings(task.world.name)[name]
    return training.pairs, training.reward


def train(spec: str, out: Path, scale: Scale, name: str) -> None:
    """Train one scorer of a task; `_train_all` runs this in a worker process."""
    from trimtab_lab.worlds import build

    task = load(spec)
    world = task.world
    training = trainings(world.name)[name]
    reward = training.reward or world.gold
    settings = dict(training.settings)
    if world.training and "layers" not in settings:
        settings = {k: v for k, v in settings.items() if k == "options"} | dict(world.training)
    if scale.epochs is not None and "probe" not in settings:
        settings["epochs"] = scale.epochs[training.pairs]
    if training.share < 1:
        settings["data"] = str(_share(world, out, training.objective, reward, training.share))
    if training.refines is not None:
        answers = guided(task, out, scale, training.refines, reward)
        settings |= {"scorer": str(out / "scorers" / training.refines), "data": str(answers)}
    build.train(world, out, name, training.objective, reward, **settings)
