"""What the plots of an arena show: means and errors, of a board or of a results.json."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trimtab_lab.arena.board import Board
from trimtab_lab.arena.frontier import Floats
from trimtab_lab.arena.methods import COMPOSED, METHODS
from trimtab_lab.arena.stats import estimate


@dataclass(frozen=True)
class Setting:
    """One setting of a method: means over prompts."""

    scaled_beta: float
    reward: float
    error: float
    """Standard error of the reward, over prompts; NaN at the base, which other samples estimate."""
    kl: float
    """Nats per answer; not finite where it is unknown."""
    flops: float
    """Per answer."""
    win: float = math.nan
    """Share of answers that beat the base's by gold, ties half; NaN where it was not kept."""
    win_error: float = math.nan
    """Its standard error, over prompts."""


@dataclass(frozen=True)
class Picture:
    """One board, as its plots need it."""

    gold: str
    real: bool
    kl: Floats
    """Of the frontier, with `reward`: [points]."""
    reward: Floats
    limit: float
    """Nats up to which the frontier's estimate holds."""
    best_of: Sequence[Mapping[str, float]]
    methods: Mapping[str, Sequence[Setting]]
    """By scaled β."""

    @property
    def base(self) -> float:
        """The base's mean reward, where the frontier begins."""
        return float(self.reward[0])

    def sampled(self) -> list[str]:
        """Listed methods whose KL is known exactly, without greedy ones."""
        return [
            name
            for name, settings in self.methods.items()
            if name in METHODS
            and METHODS[name].temperature > 0
            and METHODS[name].group in ("warp", "token", "rival")
            and np.isfinite([one.kl for one in settings]).all()
        ]

    def points(self, name: str) -> list[Setting]:
        """A method's settings by KL, and the base before them if it begins there: see Board."""
        method = METHODS[name]
        cuts = method.group == "token" and method.tail == "truncate"
        base = Setting(0.0, self.base, math.nan, 0.0, 0.0)
        begins = [] if self.real and cuts else [base]
        return sorted([*begins, *self.methods[name]], key=lambda one: one.kl)

    def by_k(self) -> dict[int, Sequence[Setting]]:
        """The settings of PARGS for every k of the heat map."""
        named = {
            int(name.partition(" k=")[2]): settings
            for name, settings in self.methods.items()
            if name.startswith("pargs k=")
        }
        if named and "pargs" in self.methods:
            named[int(METHODS["pargs"].k)] = self.methods["pargs"]
        return dict(sorted(named.items()))


def of(board: Board) -> Picture:
    """What the plots of a board show."""
    methods = {
        name: [
            _setting(
                run.scaled_beta,
                run.reward(board.gold),
                run.spent,
                run.flops,
                board.win_rate(run),
            )
            for run in runs
        ]
        for name, runs in board.methods.items()
    }
    return _picture(board.gold, board.real, board.curve(), methods)


def read(results: Mapping[str, Any]) -> list[Picture]:
    """The pictures of a results.json, which holds every prompt's rewards."""
    pictures = []
    for number, board in enumerate(results["boards"]):
        methods: dict[str, list[Setting]] = {}
        for run in sorted(results["runs"], key=lambda run: float(run["strength"])):
            method = METHODS.get(run["method"])
            target = method.target if method else "gold"
            if target == (COMPOSED if number else "gold") or run["method"] == "base":
                kl = np.array(run["kl"], dtype=float)
                reward = np.array(run["rewards"][board["gold"]], dtype=float)
                wins = np.array(run.get("wins", [math.nan]), dtype=float)
                if number:  # kept of the first board alone
                    wins = np.array([math.nan])
                setting = _setting(run["strength"], reward, kl, run["flops"], wins)
                methods.setdefault(run["method"], []).append(setting)
        real = bool(results.get("against_best_of_n"))  # other worlds have no such table
        pictures.append(_picture(board["gold"], real, board["frontier"], methods))
    return pictures


def _setting(scaled_beta: float, reward: Floats, kl: Floats, flops: float, wins: Floats) -> Setting:
    """The means of one setting; rewards, KL and wins are [prompts]."""
    one, win = estimate(reward), estimate(wins)
    return Setting(
        scaled_beta,
        one.mean,
        one.standard_error or 0.0,
        float(kl.mean()),
        flops,
        win.mean,
        win.standard_error or 0.0,
    )


def _picture(
    gold: str, real: bool, curve: Mapping[str, Any], methods: Mapping[str, Sequence[Setting]]
) -> Picture:
    kl, reward = (np.asarray(curve[name], dtype=float) for name in ("kl", "reward"))
    return Picture(gold, real, kl, reward, float(curve["limit"]), curve["best_of"], methods)
