"""Value-guided beam search over blocks: sample continuations and keep the best.

    B_{t+1} = the `width` best by s of { y + z : y ∈ B_t, z ~ π(block | y), `expand` times }

Ended beams compete with the others but are not extended; of equal beams one is kept. Beams over
sampled blocks are those of weak-to-strong search (Zhou et al., arXiv 2405.19262).
"""

from itertools import takewhile

from trimtab.search.core import Commit, Path, Problem, Rounds, scored
from trimtab.search.params import Beam, TextBlock


def beam(params: Beam, problem: Problem) -> Rounds:
    """Two rounds per block: all draws, then all scores."""
    return grow(params.width, params.expand, params.block, problem)


def grow(width: int, expand: int, block: int | TextBlock, problem: Problem) -> Rounds:
    """The rounds of `beam`; the first block is drawn width·expand times, from the one beam."""
    seeds = problem.seeds()
    beams, blocks, times = [Path()], 0, width * expand
    while growing := [path for path in beams if problem.is_open(path)]:
        parents = [path for path in growing for _ in range(times)]
        drawn = yield [
            problem.draw(path, block, next(seeds), guided=problem.guided) for path in parents
        ]
        grown = yield from scored(
            problem, [path.then(one) for path, one in zip(parents, drawn, strict=True)]
        )
        ended = [path for path in beams if not problem.is_open(path)]
        distinct = {path.token_ids: path for path in (*ended, *grown)}.values()
        beams = sorted(distinct, key=lambda path: -path.value)[:width]
        places = zip(*(path.token_ids for path in beams), strict=False)
        shared = takewhile(lambda tokens: len(set(tokens)) == 1, places)
        yield Commit(tuple(tokens[0] for tokens in shared))
        blocks, times = blocks + 1, expand
    return beams[0], {"blocks": blocks, "values": [path.value for path in beams]}
