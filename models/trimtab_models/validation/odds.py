"""How often the winner's prefix wins: both sides of pairs, cut and continued by the base."""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from trimtab_models.validation.estimates import Figures
from trimtab_models.validation.intervals import Interval, over_prompts, wilson

PARTS = (0.2, 0.4, 0.6, 0.8, 1.0)
"""Upper ends of the shares of the longer answer that are reported together."""


class Games(NamedTuple):
    """Comparisons of every return of one prefix with every return of another."""

    wins: int
    ties: int
    losses: int

    @property
    def odds(self) -> float:
        """The share of won comparisons; a tie counts half."""
        return (self.wins + self.ties / 2) / (self.wins + self.ties + self.losses)


class Compared(NamedTuple):
    """A measured point of a pair: the share of the longer answer that is kept, and the games.

    `rewards` are those of the two whole answers, the chosen one first.
    """

    prompt: Hashable
    share: float
    games: Games
    rewards: tuple[float, float]


class PrefixWins(Figures):
    """How often the winner's prefix wins, over the points up to a share of the longer answer.

    wins: mean over the points of P(the winner's prefix wins), with the bootstrap over prompts.
    ahead: the share of points where that P is above a half, with Wilson's interval; a point at a
    half counts half. n is the number of points.
    level: points at a half. ties: the share of single comparisons that tie.
    """

    above: float
    to: float
    wins: Interval
    ahead: Interval
    level: int
    ties: float


def play(chosen: Sequence[float], rejected: Sequence[float]) -> Games:
    """Compare each of m returns with each of m' returns.

    The share of wins with half the ties is an unbiased estimate of P(G_w > G_l) + ½·P(G_w = G_l).

    Raises:
        ValueError: a side has no returns.
    """
    if not (len(chosen) and len(rejected)):
        raise ValueError("a continued prefix has no returns; complete it first.")
    signs = np.sign(np.asarray(chosen)[:, None] - np.asarray(rejected)[None])  # [m, m']
    return Games(*(int((signs == sign).sum()) for sign in (1, 0, -1)))


def prefix_wins(compared: Sequence[Compared], *, seed: int = 0) -> list[PrefixWins]:
    """P(the winner's prefix wins) by length: does a prefix inherit its answer's label?

    The winner is the answer of the higher reward; pairs of equal rewards have none and are left
    out. A prefix that inherits its answer's label always wins: 1; one that says nothing: 0.5.

    Returns:
        One entry for each of `PARTS` with points, in ascending order.
    """
    results = []
    for low, high in zip((0.0, *PARTS), PARTS, strict=False):
        points = [
            one for one in compared if low < one.share <= high and one.rewards[0] != one.rewards[1]
        ]
        if not points:
            continue
        won = np.array(
            [p.games.odds if p.rewards[0] > p.rewards[1] else 1 - p.games.odds for p in points]
        )
        level = int((won == 1 / 2).sum())
        games = sum(sum(p.games) for p in points)
        results.append(
            PrefixWins(
                above=low,
                to=high,
                wins=over_prompts(
                    won, np.ones(len(won)), [p.prompt for p in points], len(won), seed=seed
                ),
                ahead=wilson(float((won > 1 / 2).sum()) + level / 2, len(won)),
                level=level,
                ties=sum(p.games.ties for p in points) / games,
            )
        )
    return results
