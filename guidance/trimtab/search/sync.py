"""The synchronous driver: many searches side by side, their asks in common batches."""

from collections.abc import Callable, Sequence
from typing import Any

from trimtab.search.core import Commit, Draw, Drawn, Result, Score, ScoredSequence, Search


def drive(
    searches: Sequence[Search],
    draw: Callable[[list[Draw]], Sequence[Drawn]],
    score: Callable[[list[tuple[int, Score]]], Sequence[ScoredSequence]],
) -> list[Result]:
    """Run searches to their ends, in step: a turn's draws are one call, and so are its scores.

    draw: answers to draws, in their order. score: the same; each comes with its search's number.
    """
    results: dict[int, Result] = {}
    turns: dict[int, list[Any]] = {}

    def advance(i: int, answers: list[Any] | None) -> None:
        try:
            turn = searches[i].send(answers)
            while isinstance(turn, Commit):
                turn = searches[i].send(None)
            turns[i] = turn
        except StopIteration as end:
            results[i] = end.value

    for i in range(len(searches)):
        advance(i, None)
    while turns:
        asked, turns = turns, {}
        asks = [(i, ask) for i, turn in asked.items() for ask in turn]
        draws = [ask for _, ask in asks if isinstance(ask, Draw)]
        scores = [(i, ask) for i, ask in asks if isinstance(ask, Score)]
        drawn = iter(draw(draws) if draws else ())
        scored = iter(score(scores) if scores else ())
        for i, turn in asked.items():
            advance(i, [next(drawn if isinstance(ask, Draw) else scored) for ask in turn])
    return [results[i] for i in range(len(searches))]
