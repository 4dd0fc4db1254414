"""Block-wise best-of-K (Controlled Decoding, Mudgal et al., arXiv 2310.17022).

    z* = argmax_k s(y + z_k),   z_1 … z_K ~ π(block | y),   y ← y + z*

A beam search of width 1: draw K blocks, keep the best, repeat until the answer ends.
"""

from trimtab.search.beam import grow
from trimtab.search.core import Problem, Rounds
from trimtab.search.params import Blockwise


def blockwise(params: Blockwise, problem: Problem) -> Rounds:
    """Two rounds per block: all draws, then all scores."""
    return grow(1, params.n, params.block, problem)
