"""Engine-neutral rows: what an adapter hands to the guide, whatever the engine."""

from dataclasses import dataclass, field
from itertools import count
from typing import Any

from trimtab.cache import NO_IDS, Ids, common_prefix
from trimtab.params import GuidanceParams

next_key = count().__next__
"""Fresh row keys: a row that replaces another never inherits its key."""


@dataclass(frozen=True)
class Fault:
    """Why a row lost its guidance."""

    scorer: str
    message: str


@dataclass
class Step:
    """What was done at one position of a row."""

    kl: float  # nats
    scored: int  # candidates that went through the scorers; 0 where there was but one
    trace: dict[str, Any] | None = None


@dataclass(frozen=True)
class Scored:
    """The scores of a row's last step; the token that ends the row is often among them."""

    position: int
    tokens: list[int]
    scores: dict[str, list[float]]

    def of(self, name: str, sequence: Ids) -> float | None:
        """What the scorer gave `sequence`, if its last token was a candidate of this step."""
        if self.position != len(sequence) - 1 or name not in self.scores:
            return None
        token = int(sequence[-1])
        return self.scores[name][self.tokens.index(token)] if token in self.tokens else None


@dataclass
class Row:
    """One guided sequence. The adapter owns it; `prefix` is renewed every step."""

    params: GuidanceParams  # with scorers resolved
    prompt_length: int
    stop_token: int | None = None  # what ends it, if its scorer fails
    record_key: str | None = None  # under which the front end will ask for its record
    prefix: Ids = field(default_factory=lambda: NO_IDS)  # prompt and completion so far
    key: int = field(default_factory=next_key)
    fault: Fault | None = None
    steps: dict[int, Step] = field(default_factory=dict)  # by position, so replays overwrite
    scored: Scored | None = None

    @property
    def weights(self) -> dict[str, float]:
        """Scorers that take part in the row's fusion."""
        return {name: w for name, w in (self.params.scorers or {}).items() if w != 0}

    def follows(self, sequence: Ids) -> bool:
        """Whether this row can have produced `sequence`, prompt included.

        The last token of a finished sequence is never seen in a prefix; under asynchronous
        scheduling a row may also have gone one step further.
        """
        shared = common_prefix(self.prefix, sequence)
        return shared >= len(sequence) - 1 and shared >= min(len(self.prefix), len(sequence))
