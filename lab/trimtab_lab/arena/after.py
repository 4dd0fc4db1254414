"""Measures of each method at its setting nearest to the comparison's KL, after all settings ran.

diversity   1 − mean ROUGE-L F1 over all pairs of ten answers to a prompt (PARGS, Table 5)
ranks       mean reciprocal rank of the tokens of a good answer, see ranks.py

Both are kept for every prompt, so that differences are paired. A file holds them; what is in it is
not measured again.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from trimtab_lab.arena import ranks
from trimtab_lab.arena.board import Board
from trimtab_lab.arena.frontier import Floats
from trimtab_lab.arena.measures import diversity
from trimtab_lab.arena.methods import METHODS
from trimtab_lab.arena.ranks import References
from trimtab_lab.arena.runs import Run
from trimtab_models import outputs

if TYPE_CHECKING:
    from trimtab_lab.arena.bench import Bench

REMEDY = "remove it to measure again"
SEED = 1000
"""Of the references, beside the arena's own: other answers than those of any setting."""


@dataclass(frozen=True)
class After:
    """Per method, one value for each prompt."""

    diversity: Mapping[str, Floats] = field(default_factory=dict)
    ranks: Mapping[str, Floats] = field(default_factory=dict)


@dataclass(frozen=True)
class Stored:
    """A measured value, and the settings of its run."""

    settings: dict[str, Any]
    values: list[float]


def measure(bench: "Bench", board: Board, out: Path, *, fresh: bool = True) -> After:
    """Measure every method of a board for which the measures are defined.

    Writes out/after.json and out/references.json.

    fresh: whether to measure what the file lacks; else that is left out.

    Raises:
        Damaged: (a ValueError) a file is damaged.
    """
    nearest = [board.nearest(runs) for name, runs in board.methods.items() if name in METHODS]
    answers, references = bench.scale.diverse, bench.scale.references
    varied: dict[str, Floats] = {}
    ranked: dict[str, Floats] = {}
    file = _File(out / "after.json")
    for run in tqdm(nearest, desc="after", unit="method"):
        method = METHODS[run.method]
        if answers and method.temperature > 0 and not method.search:
            name = f"diversity of {answers}"
            if fresh or file.has(run, name):
                vary = partial(_varied, bench, run, answers)
                varied[run.method] = np.array(file.of(run, name, vary))
        if references and not (method.search or method.over or method.k == "all"):
            name = f"ranks in the best of {references}"
            if fresh or file.has(run, name):
                rank = partial(_ranked, bench, run, out, references)
                ranked[run.method] = np.array(file.of(run, name, rank))
    return After(varied, ranked)


class _File:
    """Measured values by name and run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        known = outputs.read(path, dict[str, Stored], REMEDY) if path.exists() else {}
        self.known: dict[str, Stored] = dict(known)

    def has(self, run: Run, name: str) -> bool:
        """Whether the file has values of a run with the same settings."""
        one = self.known.get(f"{name}: {run.label}")
        return one is not None and one.settings == _plain(run)

    def of(self, run: Run, name: str, measured: Callable[[], Sequence[float]]) -> list[float]:
        """The values of a run: those of the file if its settings are the same, else new ones."""
        key = f"{name}: {run.label}"
        if not self.has(run, name):
            self.known[key] = Stored(_plain(run), [round(float(v), 6) for v in measured()])
            content = {key: vars(stored) for key, stored in self.known.items()}
            outputs.put(self.path, json.dumps(content) + "\n")
        return self.known[key].values


def _plain(run: Run) -> dict[str, Any]:
    """A run's settings as they are in a file."""
    settings: dict[str, Any] = json.loads(json.dumps(dict(run.settings)))
    return settings


def _varied(bench: "Bench", run: Run, n: int) -> list[float]:
    texts = bench.texts_of(METHODS[run.method], run.scaled_beta, n)
    return [diversity(group, compared=n) for group in texts]


def _ranked(bench: "Bench", run: Run, out: Path, n: int) -> Sequence[float]:
    method = METHODS[run.method]
    references = References(bench.prompts, _best(bench, out / "references.json", n))
    if method.rival:
        values = ranks.plain(references, bench.policy(method, run.scaled_beta))
    elif (params := bench.guidance(method, run.scaled_beta)) is None:
        warp = method.heat(run.scaled_beta), method.nucleus(run.scaled_beta)
        values = ranks.plain(references, bench.base, *warp)
    else:
        values = ranks.guided(references, bench.base, bench.sampler, params)
    return list(references.means(values))


def _best(bench: "Bench", path: Path, n: int) -> list[list[int]]:
    """The best of n answers of the base to each prompt by gold, the first of equals."""
    made = f"{bench.prints['base']} {len(bench.prompts)} {bench.scale.seed} {n}"
    stored = outputs.read(path, dict[str, list[list[int]]], REMEDY) if path.exists() else {}
    if made not in stored:
        groups = bench.sampler.sample(
            bench.prompts,
            n,
            seed=SEED + bench.scale.seed,
            temperature=1.0,
            max_tokens=bench.task.world.max_tokens,
        )
        texts = [[bench.text(one.token_ids) for one in group] for group in groups]
        gold = bench.label(texts)[bench.task.world.gold]
        best = [int(np.argmax(rewards)) for rewards in gold]
        stored = {made: [list(g[i].token_ids) for g, i in zip(groups, best, strict=True)]}
        outputs.put(path, json.dumps(stored) + "\n")
    return stored[made]
