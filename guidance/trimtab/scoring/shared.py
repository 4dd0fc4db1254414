"""Rows of one forward whose prefixes begin with the same slots of the pool.

Answers to one prompt, and prompts with the same instructions, share slots. The keys of these are
read once for all queries of such rows, instead of once a row.
"""

from collections import defaultdict
from dataclasses import dataclass

from trimtab.scoring.pool import Ids, common_prefix

DEPTHS = (4096, 2048, 1024, 512)
"""Lengths of a common start that are tried, the longest first. Rows that share a shorter start are
read one by one: at 128 tokens, merging costs what it saves (benchmarks/attention.py)."""
SAVED = 2048
"""Fewest keys that a run must save to be worth a call of its own."""


@dataclass
class Block:
    """One row's share of a packed forward."""

    slots: Ids  # [prefix + candidates] slots of its K/V, including new ones
    prefix: int  # length of the prefix
    start: int  # first position of the prefix that is new; the queries before the candidates
    queries: int  # new prefix tokens + candidates


@dataclass
class SharedRun:
    """Blocks that begin with the same slots, none of which is new."""

    members: list[int]  # their indices
    length: int


def shared_runs(blocks: list[Block]) -> list[SharedRun]:
    """Runs worth a call of their own; each block is in at most one."""
    runs = []
    left = list(range(len(blocks)))
    for depth in DEPTHS if len(blocks) > 1 else ():
        together: dict[int, list[int]] = defaultdict(list)
        for i in left:
            if blocks[i].start >= depth:
                together[int(blocks[i].slots[depth - 1])].append(i)
        for members in together.values():
            # A slot stands for a token after one prefix: those before it are shared too.
            shortest = min(blocks[i].start for i in members)
            begin = blocks[members[0]].slots[:shortest]
            length = min(common_prefix(begin, blocks[i].slots) for i in members)
            if (len(members) - 1) * length >= SAVED:
                runs.append(SharedRun(members, length))
                left = [i for i in left if i not in members]
    return runs
