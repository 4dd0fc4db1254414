"""The board: the settings of every method, and the one that is compared with other methods."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from trimtab_lab.arena.frontier import Efficiency, Floats, best_of, sampled
from trimtab_lab.arena.methods import METHODS
from trimtab_lab.arena.runs import Run
from trimtab_lab.arena.stats import at_kl, estimate, wins
from trimtab_models.validation import Estimate

EXACT_BEST_OF = (2, 4, 8, 16, 32, 64, 128)
ORACLE = "best-of-{} by the reward itself"


@dataclass(frozen=True)
class BoardRow:
    """A line of the leaderboard."""

    method: str
    source: str
    scaled_beta: float
    reward: Estimate
    kl: float | None
    bound: bool
    """Whether the KL is an upper bound."""
    efficiency: Efficiency | None
    at_kl: Estimate | None
    efficiency_at_kl: Efficiency | None
    win: float
    tie: float
    flops: float
    """Per answer, divided by the base's."""
    tokens: float
    seconds: float
    diversity: float | None


class Board:
    """Runs of all methods on one gold reward, and the frontier of that reward.

    Args:
        gold: name of the reward that judges.
        base: samples of the base, [prompts, samples] of every reward.
        runs: of every method, including the base.
        kl: nats at which methods are compared; the frontier's limit if that is smaller.
        real: whether the world is real. There is no optimum to compare with then, so `kl` stands
            beyond the frontier's limit too. And a method that cuts the tail does not begin at the
            base: at β = 0 it has spent nats already, so below them it has no reward.
    """

    def __init__(
        self,
        gold: str,
        base: Mapping[str, Floats],
        runs: Sequence[Run],
        kl: float,
        *,
        real: bool = False,
    ):
        self.gold, self.runs, self.real = gold, runs, real
        self.base_samples = base[gold]
        self.base_tokens = float(base["tokens"].mean())
        self.frontier = sampled(self.base_samples)
        self.kl = kl if real else min(kl, self.frontier.limit)
        self.methods: dict[str, list[Run]] = {}
        for run in sorted(runs, key=lambda run: run.scaled_beta):
            self.methods.setdefault(run.method, []).append(run)
        [self.base] = self.methods["base"]

    @property
    def base_reward(self) -> Floats:
        """The base's mean reward over its samples, [prompts]."""
        return np.asarray(self.base_samples.mean(1))

    @property
    def base_estimate(self) -> Estimate:
        """Its mean over prompts."""
        return estimate(self.base_reward)

    @cached_property
    def rows(self) -> list[BoardRow]:
        """One line per method, sorted by reward at equal KL, or by reward if that is unknown."""
        listed = [
            self._row(name, runs)
            for name, runs in self.methods.items()
            if name in METHODS  # heat maps are plotted, not listed
        ]
        sizes = [n for n in EXACT_BEST_OF if n <= self.base_samples.shape[1] // 2]
        shown = (4, 16) if self.real else (16, 128)
        listed += [self._oracle(n) for n in sizes if n in shown or n == sizes[-1]]
        if self.real:  # rewards at another KL are not comparable
            return sorted(
                listed, key=lambda row: (row.at_kl is None, -(row.at_kl or row.reward).mean)
            )
        return sorted(listed, key=lambda row: -(row.at_kl or row.reward).mean)

    def curve(self) -> dict[str, Any]:
        """The frontier as points for a plot."""
        kl = np.linspace(0, min(self.frontier.limit * 1.25, float(self.frontier.kl[-1].mean())), 60)
        start = self.base_estimate.mean
        return {
            "kl": kl,
            "reward": start + self.frontier.gain(kl),
            "limit": self.frontier.limit,
            "best_of": self.oracle(),
        }

    def oracle(self) -> list[dict[str, float]]:
        """Exact best-of-N by the reward itself, from the base's samples."""
        points = []
        for n in EXACT_BEST_OF:
            if n <= self.base_samples.shape[1]:
                rewards, kl = best_of(self.base_samples, n)
                points.append({"n": n, "kl": kl, "reward": float(rewards.mean())})
        return points

    def points(self, name: str) -> list[tuple[Floats, Floats]]:
        """(reward, KL) of each setting of a method, and of the base where the method begins there.

        Shapes: [prompts] each.
        """
        runs = self.methods[name]
        known = METHODS.get(name)
        cuts = known is not None and known.group == "token" and known.tail == "truncate"
        begins = [] if self.real and cuts else [(self.base_reward, np.zeros_like(self.base_reward))]
        return begins + [(run.reward(self.gold), run.spent) for run in runs]

    def win_rate(self, run: Run) -> Floats:
        """Share of answers with a higher gold reward than the base's, ties half: [prompts]."""
        ours, theirs = (np.asarray(one.rewards[self.gold], dtype=float) for one in (run, self.base))
        higher = ours[:, :, None] > theirs[:, None]  # [prompts, answers, answers of the base]
        equal = ours[:, :, None] == theirs[:, None]
        return np.asarray((higher + 0.5 * equal).mean((1, 2)))

    def efficiency(self, run: Run) -> Efficiency | None:
        """A run's share of the optimum's gain at its KL."""
        return self.frontier.efficiency(run.reward(self.gold), run.spent)

    def nearest(self, runs: Sequence[Run]) -> Run:
        """The setting nearest to the comparison KL in √KL; the best setting if KL is unknown."""
        known = [run for run in runs if np.isfinite(run.spent).all()]
        if not known:
            return max(runs, key=lambda run: float(run.reward(self.gold).mean()))
        return min(known, key=lambda run: abs(np.sqrt(run.spent.mean()) - np.sqrt(self.kl)))

    def _row(self, name: str, runs: Sequence[Run]) -> BoardRow:
        run, method = self.nearest(runs), METHODS[name]
        # At temperature 0, and with a single setting, there is nothing to interpolate.
        between = method.temperature > 0 and len(runs) > 1 and np.isfinite(run.spent).all()
        at = at_kl(self.points(name), self.kl) if between else None
        ours, theirs = np.asarray(run.rewards[self.gold]), np.asarray(self.base.rewards[self.gold])
        n = min(ours.shape[1], theirs.shape[1])
        answers = sum(map(len, run.tokens))
        kl = float(run.spent.mean())
        return BoardRow(
            method=name,
            source=method.source,
            scaled_beta=run.scaled_beta,
            reward=estimate(run.reward(self.gold)),
            kl=kl if np.isfinite(kl) else None,
            bound=method.search is not None,
            efficiency=self.efficiency(run),
            at_kl=None if at is None else estimate(at),
            efficiency_at_kl=None
            if at is None
            else self.frontier.efficiency(at, np.full_like(at, self.kl)),
            **wins(ours[:, :n], theirs[:, :n]),
            flops=run.flops / self.base.flops,
            tokens=float(np.mean(run.tokens)),
            seconds=run.seconds / answers,
            diversity=run.diversity if np.isfinite(run.diversity) else None,
        )

    def _oracle(self, n: int) -> BoardRow:
        rewards, kl = best_of(self.base_samples, n)
        theirs = np.asarray(self.base.rewards[self.gold])
        return BoardRow(
            method=ORACLE.format(n),
            source="not a method: it knows the reward",
            scaled_beta=0.0,
            reward=estimate(rewards),
            kl=kl,
            bound=True,
            efficiency=self.frontier.efficiency(rewards, np.full_like(rewards, kl)),
            at_kl=None,
            efficiency_at_kl=None,
            **wins(np.broadcast_to(rewards[:, None], theirs.shape), theirs),
            flops=float(n),
            tokens=self.base_tokens,
            seconds=n * self.base.seconds / sum(map(len, self.base.tokens)),
            diversity=None,
        )
