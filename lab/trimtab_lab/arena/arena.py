"""The arena itself: prepare, draw the frontier, run every setting, report. Resumable throughout.

OUT/base  OUT/rollouts.jsonl  OUT/scorers/   the world (trimtab_lab.worlds.build)
OUT/base-samples.npz                         what the frontier is estimated from
OUT/runs/METHOD_@_STRENGTH.json              a setting; what is there is not run again
OUT/results.json  OUT/leaderboard.md  *.png  the report, written anew each time
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from trimtab.errors import TrimtabError
from trimtab.params import MAX_BETA
from trimtab_lab.arena import report, values
from trimtab_lab.arena.bench import Bench
from trimtab_lab.arena.frontier import Floats
from trimtab_lab.arena.methods import DIALS, METHODS, SUMS, Method, heat_map
from trimtab_lab.arena.prepare import prepare
from trimtab_lab.arena.runs import Run, find, save
from trimtab_lab.arena.scale import Scale
from trimtab_lab.arena.task import Task
from trimtab_lab.worlds import WORLDS, build
from trimtab_models import outputs


def hold(task: Task, out: Path, scale: Scale, only: Sequence[str] = (), command: str = "") -> None:
    """Everything that one `trimtab arena` does.

    Args:
        task: what on.
        out: where to; what is there already is not done again.
        scale: how much.
        only: names of `METHODS`, if not all of the scale's; the base is always among them.
        command: what was typed, for the report.

    Raises:
        TrimtabError: there is no such method, or `out` holds results of other settings.
        InTheWay: (an OSError) `out` holds something else, or cannot be written to.
        Damaged: (a ValueError) a file of `out` is not what was written.
    """
    methods = chosen(task, scale, only)
    out = outputs.claim(out, {"world": task.world.name})
    names = dict.fromkeys(method.scorer for method in methods if method.scorer)
    scorers = prepare(task, out, scale, names)
    base = build.build_base(task.world, out)
    bench = Bench(task, str(base), scorers, scale, out)
    samples = base_samples(bench, out / "base-samples.npz")
    climb(bench, methods, out / "runs")
    mse = values.errors(task.world, base, scorers, bench.texts, out / "values.json")
    report.write(task, bench.texts, samples, out, command, mse)


def chosen(task: Task, scale: Scale, only: Sequence[str]) -> list[Method]:
    """The methods to run, the base first."""
    if unknown := sorted(set(only) - set(METHODS)):
        raise TrimtabError(
            f"no such method: {', '.join(unknown)}; the methods are {', '.join(METHODS)}."
        )
    names = only or task.methods or [name for name in scale.methods if _suits(task, METHODS[name])]
    if unfit := [name for name in names if not _possible(task, METHODS[name])]:
        there = [f"{name} (for {', '.join(_worlds(task, METHODS[name]) or ())})" for name in unfit]
        raise TrimtabError(f"{task.world.name} is no world for {', '.join(there)}.")
    methods = [METHODS[name] for name in dict.fromkeys(("base", *names))]
    grids = [heat_map(METHODS[name]) for name in scale.heat_map if name in names]
    return methods + [method for grid in grids for method in grid]


def _worlds(task: Task, method: Method) -> Iterable[str] | None:
    """The worlds that a method can be had for; None: all. What limits its training is no matter
    where a task brings the scorer."""
    trained = None if method.scorer in task.scorers else method.worlds
    return {"gold": trained, "composed": SUMS, "dial": DIALS}[method.target]


def _possible(task: Task, method: Method) -> bool:
    worlds = _worlds(task, method)
    return worlds is None or task.world.name in worlds


def _suits(task: Task, method: Method) -> bool:
    """Tuning a model of one's own must be asked for."""
    return _possible(task, method) and (task.spec in WORLDS or not method.rival)


def climb(bench: Bench, methods: Iterable[Method], folder: Path) -> list[Run]:
    """Run each method up its strengths, until its KL has passed its stop."""
    runs = []
    steps = [(method, method.strengths or bench.scale.ladder) for method in methods]
    with tqdm(total=sum(len(strengths) for _, strengths in steps), unit="setting") as progress:
        for method, strengths in steps:
            progress.set_description(method.name)
            for done, strength in enumerate(strengths):
                if abs(bench.beta(method, strength)) > MAX_BETA:
                    progress.update()
                    continue
                settings = bench.settings(method, strength)
                run = find(folder, method.name, strength, settings)
                if run is None:
                    run = bench.run(method, strength)
                    save(folder, run)
                runs.append(run)
                if run.spent.mean() > method.stop and method.temperature > 0:
                    progress.update(len(strengths) - done)
                    break
                progress.update()
    return runs


def base_samples(bench: Bench, path: Path) -> dict[str, Floats]:
    """Answers of the base to the test prompts: every reward and "tokens", [prompts, samples].

    Raises:
        TrimtabError: the file was made with other settings.
        Damaged: (a ValueError) it is not what was written.
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
    samples = bench.base_samples()
    with outputs.writing(path) as part, open(part, "wb") as file:
        np.savez_compressed(file, made=np.array(settings), **samples)  # type: ignore[arg-type]
    return samples


def _stored(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file, np.load(file) as stored:
            found = {name: stored[name] for name in stored.files}
        shapes = {values.shape for name, values in found.items() if name != "made"}
    except Exception:  # zip, zlib and NumPy each have their own
        found, shapes = {}, set()
    if "made" not in found or len(shapes) != 1 or len(*shapes) != 2:
        raise outputs.Damaged(f"{path} is damaged; remove it to draw the samples again.")
    return found
