"""The synchronous driver: many searches side by side, with common batches."""

from collections.abc import Callable, Sequence
from typing import Any

from trimtab.search.core import Commit, Draw, Drawn, Result, Score, ScoredSequence, Search


def drive(
    searches: Sequence[Search],
    draw: Callable[[list[Draw]], Sequence[Drawn]],
    score: Callable[[list[tuple[int, Score]]], Sequence[ScoredSequence]],
) -> list[Result]:
    """Run searches in lockstep: one call for all draws of a round, one for all its scores.

    draw: results of draws, in their order. score: the same; each has the number of its search.
    """
    results: dict[int, Result] = {}
    rounds: dict[int, list[Any]] = {}

    def advance(i: int, answers: list[Any] | None) -> None:
        try:
            yielded = searches[i].send(answers)
            while isinstance(yielded, Commit):
                yielded = searches[i].send(None)
            rounds[i] = yielded
        except StopIteration as end:
            results[i] = end.value

    for i in range(len(searches)):
        advance(i, None)
    while rounds:
        current, rounds = rounds, {}
        requests = [(i, request) for i, batch in current.items() for request in batch]
        to_draw = [request for _, request in requests if isinstance(request, Draw)]
        to_score = [(i, request) for i, request in requests if isinstance(request, Score)]
        drawn = iter(draw(to_draw) if to_draw else ())
        scored = iter(score(to_score) if to_score else ())
        for i, batch in current.items():
            advance(i, [next(drawn if isinstance(one, Draw) else scored) for one in batch])
    return [results[i] for i in range(len(searches))]
