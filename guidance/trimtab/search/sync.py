"""The synchronous driver: many searches side by side, with common batches."""

from collections.abc import Callable, Sequence
from typing import Any

from trimtab.search.core import Commit, Draw, Drawn, Result, Score, ScoredSequence, Search


def drive(
    searches: Sequence[Search],
    draw: Callable[[list[Draw]], Sequence[Drawn]],
    score: Callable[[list[tuple[int, Score]]], Sequence[ScoredSequence]],
) -> list[Result]:
    """Run searches in lockstep: one call for all draws of a turn, one for all its scores.

    draw: results of draws, in their order. score: the same; each has the number of its search.
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
        current, turns = turns, {}
        requests = [(i, request) for i, turn in current.items() for request in turn]
        to_draw = [request for _, request in requests if isinstance(request, Draw)]
        to_score = [(i, request) for i, request in requests if isinstance(request, Score)]
        drawn = iter(draw(to_draw) if to_draw else ())
        scored = iter(score(to_score) if to_score else ())
        for i, turn in current.items():
            advance(i, [next(drawn if isinstance(one, Draw) else scored) for one in turn])
    return [results[i] for i in range(len(searches))]
