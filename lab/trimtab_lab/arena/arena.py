"""Run an arena: prepare, estimate the frontier, run every setting, report. Every step can resume.

OUT/base  OUT/rollouts.jsonl  OUT/scorers/   the world (trimtab_lab.worlds.build)
OUT/base-samples.npz                         samples from which the frontier is estimated
OUT/runs/METHOD_@_SCALED-BETA.json           one setting; an existing file is not run again
OUT/results.json  OUT/leaderboard.md  *.png  the report, written every time
"""

import json
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.errors import TrimtabError
from trimtab_lab.arena import report, values
from trimtab_lab.arena.after import After, measure
from trimtab_lab.arena.bench import Bench
from trimtab_lab.arena.climb import Actors, Here, Runner, climb
from trimtab_lab.arena.frontier import Floats
from trimtab_lab.arena.method import Method
from trimtab_lab.arena.methods import DIALS, METHODS, SUMS, heat_map
from trimtab_lab.arena.prepare import prepare
from trimtab_lab.arena.scale import Scale
from trimtab_lab.arena.task import Task
from trimtab_lab.worlds import WORLDS, build
from trimtab_models import outputs


def compare(
    task: Task,
    out: Path,
    scale: Scale,
    only: Sequence[str] = (),
    command: str = "",
    cluster: tuple[str, int | None] | None = None,
) -> None:
    """Run all methods on a task and write the report, as `trimtab arena` does.

    Args:
        task: the world and how to run it.
        out: output directory; existing results in it are reused.
        scale: numbers of prompts, answers and settings.
        only: names of `METHODS`; by default those of the scale. The base is always added.
        command: the command line, for the report.
        cluster: address of a Ray cluster, and the number of actors that run the settings; see
            `trimtab_lab.actors.pool`. Default: all run in this process.

    Raises:
        TrimtabError: there is no such method, or `out` holds results of other settings.
        InTheWay: (an OSError) `out` holds something else, or cannot be written to.
        Damaged: (a ValueError) a file of `out` is damaged.
    """
    methods = chosen(task, scale, only)
    out = outputs.claim(out, {"world": task.world.name})
    names = dict.fromkeys(method.scorer for method in methods if method.scorer)
    scorers = prepare(task, out, scale, names)
    base = build.build_base(task.world, out)
    new_bench = partial(Bench, task, str(base), scorers, scale, out.resolve())
    bench = new_bench()
    runner: Runner = Actors(cluster[0], new_bench, cluster[1]) if cluster else Here(bench)
    samples = base_samples(bench, out / "base-samples.npz", runner)
    climb(bench, methods, out / "runs", runner)
    mse, after = {}, After()
    if not task.world.real:  # there, plain transformers would sample for an hour
        mse = values.errors(task.world, base, scorers, bench.texts, out / "values.json")
        after = measure(bench, report.boards_of(task, samples, out)[0][0], out)
    report.write(task, bench.texts, samples, out, command, mse, after)


def chosen(task: Task, scale: Scale, only: Sequence[str]) -> list[Method]:
    """The methods to run, the base first."""
    if unknown := sorted(set(only) - set(METHODS)):
        raise TrimtabError(
            f"no such method: {', '.join(unknown)}; the methods are {', '.join(METHODS)}."
        )
    names = only or task.methods or [name for name in scale.methods if _suits(task, METHODS[name])]
    if unfit := [name for name in names if not _possible(task, METHODS[name])]:
        pairs = [f"{name} (for {', '.join(_worlds(task, METHODS[name]) or ())})" for name in unfit]
        raise TrimtabError(f"{task.world.name} does not support {', '.join(pairs)}.")
    methods = [METHODS[name] for name in dict.fromkeys(("base", *names))]
    grids = [heat_map(METHODS[name]) for name in scale.heat_map if name in names]
    return methods + [method for grid in grids for method in grid]


def _worlds(task: Task, method: Method) -> Iterable[str] | None:
    """The worlds that a method supports; None: all.

    Training limits do not apply if the task supplies the scorer.
    """
    trained = None if method.scorer in task.scorers else method.worlds
    return {"gold": trained, "composed": method.worlds or SUMS, "dial": DIALS}[method.target]


def _possible(task: Task, method: Method) -> bool:
    worlds = _worlds(task, method)
    return worlds is None or task.world.name in worlds


def _suits(task: Task, method: Method) -> bool:
    """Whether a method runs by default; rivals, which tune the model, only on made-up worlds."""
    made_up = task.spec in WORLDS and not task.world.real
    return _possible(task, method) and (made_up or not (method.rival or method.over))


def base_samples(bench: Bench, path: Path, runner: Runner | None = None) -> dict[str, Floats]:
    """Answers of the base to the test prompts: every reward and "tokens", [prompts, samples].

    runner: where they are sampled; default: on the bench.

    Raises:
        TrimtabError: the file was made with other settings.
        Damaged: (a ValueError) the file is damaged.
    """
    scale = bench.scale
    made = {"base": bench.prints["base"], "prompts": len(bench.prompts), "seed": scale.seed}
    made |= {"samples": scale.base_samples, "world": bench.task.world.name}
    settings = json.dumps(made, sort_keys=True)
    if path.exists():
        stored = _stored(path)
        if (former := str(stored.pop("made"))) != settings:
            raise TrimtabError(
                f"{path} was made with other settings ({former}, now {settings}); choose another "
                "--out, or remove it."
            )
        return stored
    samples = (runner or Here(bench)).base_samples()
    with outputs.writing(path) as part, open(part, "wb") as file:
        np.savez_compressed(file, made=np.array(settings), **samples)  # type: ignore[arg-type]
    return samples


def _stored(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file, np.load(file) as stored:
            arrays = {name: stored[name] for name in stored.files}
        shapes = {values.shape for name, values in arrays.items() if name != "made"}
    except Exception:  # zip, zlib and NumPy raise different ones
        arrays, shapes = {}, set()
    if "made" not in arrays or len(shapes) != 1 or len(*shapes) != 2:
        raise outputs.Damaged(f"{path} is damaged; remove it to sample again.")
    return arrays
