"""Rows that go through a scorer's network together, in one forward."""

from trimtab.scoring.fixed import FixedRow, Shape
from trimtab.scoring.pool import Ids
from trimtab.scoring.shared import Block

MAX_TOKENS = 2048
"""Maximum packed tokens of one forward, to bound its memory; longer prompts are chunked."""
MAX_CANDIDATES = 256
"""Maximum candidates of a row in one forward, to bound the memory that each pool reserves for them;
more are forwarded in parts."""


class FixedWave:
    """Rows of one step with fixed shapes."""

    def __init__(self) -> None:
        self.keys: set[int] = set()
        self.rows: list[FixedRow] = []
        self.cached: list[int] = []  # tokens of each prefix whose K/V are in the pool already
        self.tokens = self.longest = self.widest = 0

    def fits(self, length: int, missing: int, candidates: int) -> bool:
        """Whether one more row fits; always if there is none yet."""
        shape = Shape.of(
            len(self.rows) + 1, max(candidates, self.widest), max(length, self.longest)
        )
        return not self.rows or (shape.fits and self.tokens + missing <= MAX_TOKENS)

    def add(self, key: int, row: FixedRow, cached: int) -> None:
        """Add a row, of whose prefix `cached` tokens are in the pool."""
        self.keys.add(key)
        self.rows.append(row)
        self.cached.append(cached)
        self.tokens += len(row.prefix) - cached
        self.longest = max(self.longest, len(row.prefix))
        self.widest = max(self.widest, len(row.candidates))


class Wave:
    """Rows that go through the network together."""

    def __init__(self) -> None:
        self.keys: set[int] = set()
        self.ids: list[Ids] = []
        self.positions: list[Ids] = []
        self.blocks: list[Block] = []
        self.candidates: list[tuple[int, Ids, Block, int]] = []
        """Key, candidates, block and first packed token of each row's candidates, whose slots are
        not chosen yet."""
        self.wanted: list[int] = []  # packed tokens whose hidden states are requested
        self.tokens = 0

    def add(self, ids: Ids, positions: Ids, block: Block) -> None:
        """Add a row's new tokens: ids and positions, [queries] each."""
        self.ids.append(ids)
        self.positions.append(positions)
        self.blocks.append(block)
        self.tokens += len(ids)

    def want(self, count: int) -> None:
        """Request the hidden states of the last `count` tokens added."""
        self.wanted.extend(range(self.tokens - count, self.tokens))
