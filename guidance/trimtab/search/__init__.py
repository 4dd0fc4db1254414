"""Sequence-level search over whole answers, blocks or trees of tokens, with the same scorers.

result = sampler.search([[5, 6, 7]], SearchParams.parse({"method": "smc"}), seed=0)[0]
"""

from trimtab.search.beam import beam
from trimtab.search.best_of_n import best_of_n
from trimtab.search.blockwise import blockwise
from trimtab.search.core import (
    Commit,
    Draw,
    Drawn,
    Problem,
    Result,
    Score,
    ScoredSequence,
    Search,
    Usage,
    counted,
)
from trimtab.search.mcts import mcts
from trimtab.search.params import Beam, BestOfN, Blockwise, Mcts, SearchParams, Smc, TextBlock
from trimtab.search.smc import smc
from trimtab.search.sync import drive

__all__ = [
    "Beam",
    "BestOfN",
    "Blockwise",
    "Commit",
    "Draw",
    "Drawn",
    "Mcts",
    "Problem",
    "Result",
    "Score",
    "ScoredSequence",
    "Search",
    "SearchParams",
    "Smc",
    "TextBlock",
    "Usage",
    "drive",
    "start",
]


def start(params: SearchParams, problem: Problem) -> Search:
    """A new search: a generator for a driver."""
    match params:
        case BestOfN():
            method = best_of_n(params, problem)
        case Blockwise():
            method = blockwise(params, problem)
        case Beam():
            method = beam(params, problem)
        case Smc():
            method = smc(params, problem)
        case Mcts():
            method = mcts(params, problem)
        case _:
            raise TypeError(f"no such search: {type(params).__name__}")
    return counted(problem, method)
