"""Best-of-N: draw n whole answers and return the one with the highest value.

    y* = argmax_i s(y_i),   y_i ~ π,   π = π0 where β = 0, else the guided policy

Its KL to π is at most log n − (n − 1)/n (Beirami et al., arXiv 2401.01879).
"""

from trimtab.search.core import Path, Problem, Rounds, scored
from trimtab.search.params import BestOfN


def best_of_n(params: BestOfN, problem: Problem) -> Rounds:
    """Two rounds: all draws, then all scores. Ties go to the first draw."""
    start, seeds = Path(), problem.seeds()
    drawn = yield [
        problem.draw(start, problem.max_tokens, next(seeds), guided=problem.guided)
        for _ in range(params.n)
    ]
    paths = yield from scored(problem, [start.then(one) for one in drawn])
    return max(paths, key=lambda path: path.value), {"values": [path.value for path in paths]}
