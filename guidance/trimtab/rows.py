"""Engine-neutral rows: what an adapter hands to the guide, whatever the engine."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from torch import Tensor

from trimtab.params import GuidanceParams
from trimtab.scorers.base import Scorer
from trimtab.scoring.pool import NO_IDS, Ids, common_prefix
from trimtab.scoring.text import Prompt, PromptContext

ROUNDING = 1e-4
"""Nats that single precision may be wrong by."""

next_key = count().__next__
"""Fresh row keys: a row that replaces another never inherits its key."""


@dataclass(frozen=True)
class RowFault:
    """Why a row lost its guidance."""

    scorer: str
    message: str
    overrun: bool = False  # it took too long

    @property
    def fields(self) -> dict[str, Any]:
        """The fault, as a record has it."""
        return {"scorer": self.scorer, "message": self.message, "overrun": self.overrun}


@dataclass
class StepPlan:
    """Where strengths are set anew at every step: those of one step, and what they will cost."""

    spent: float = 0.0  # nats, before this step
    left: float = math.inf  # nats that it and the steps to come may cost, in expectation
    most: float = math.inf  # nats that the answer may have cost after it
    before: float = 0.0  # β of the last step that had one, 0 if none had
    beta: float | None = None  # under a kl_budget; None where there was one candidate
    duals: dict[str, float] = field(default_factory=dict)  # strengths of scorers with a floor
    after: dict[int, float] = field(default_factory=dict)  # nats left after each candidate

    def rests(self, kl: float, alone: bool, bonus: Tensor) -> bool:
        """Whether the base is left as it is: nothing pushes, or the step's KL cannot be paid."""
        return not (alone or bool(bonus.any())) or self.spent + kl > self.most + ROUNDING

    @property
    def fields(self) -> dict[str, Any]:
        """The strengths, as a record has them; nothing where there was but one candidate."""
        beta = {} if self.beta is None else {"beta": self.beta}
        return {**beta, **({"duals": self.duals} if self.duals else {})}


@dataclass
class Step:
    """What was done at one position of a row."""

    kl: float  # nats
    scored: int  # candidates that went through the scorers; 0 where there was but one
    trace: dict[str, Any] | None = None
    plan: StepPlan | None = None


@dataclass(frozen=True)
class StepScores:
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
    context: PromptContext = field(default_factory=PromptContext)
    scorers: Mapping[str, Scorer] = field(default_factory=dict)
    """The versions that it began with; where none is named, the guide's present one."""
    prefix: Ids = field(default_factory=lambda: NO_IDS)  # prompt and completion so far
    key: int = field(default_factory=next_key)
    fault: RowFault | None = None
    read: set[str] = field(default_factory=set)  # scorers that have read its prefix
    steps: dict[int, Step] = field(default_factory=dict)  # by position, so replays overwrite
    scored: StepScores | None = None
    plan: StepPlan | None = None  # of this step, under a kl_budget or floors
    untraced: bool = False  # its trace went, for want of memory

    @property
    def prompt(self) -> Prompt:
        """What scorers that read text need to know."""
        length = self.prompt_length if self.context.length is None else self.context.length
        return Prompt(length, self.context.turns)

    @property
    def weights(self) -> dict[str, float]:
        """Scorers that take part in the row's fusion."""
        return {name: w for name, w in (self.params.scorers or {}).items() if w != 0}

    def next_plan(self, band: float) -> StepPlan | None:
        """A plan for this step, without its strengths yet; None if β is what the request says.

        What the last step's plan left holds, unless spent and left nats together would then stand
        more than `band` away from the budget. A row without the record of its past has none left.
        """
        if self.params.kl_budget is None:
            return StepPlan() if self.params.floors else None
        budget, at = self.params.kl_budget, len(self.prefix)
        most = (1 + band) * budget
        if at <= self.prompt_length:
            return StepPlan(0.0, budget, most)
        last = self.steps.get(at - 1)
        if last is None or last.plan is None:
            return StepPlan(most, 0.0, most)
        before = last.plan.before if last.plan.beta is None else last.plan.beta
        spent = last.plan.spent + last.kl
        left = last.plan.after.get(int(self.prefix[-1]), budget - spent)
        left = min(max(left, (1 - band) * budget - spent), most - spent)
        return StepPlan(spent, left, most, before)

    def follows(self, sequence: Ids) -> bool:
        """Whether this row can have produced `sequence`, prompt included.

        The last token of a finished sequence is never seen in a prefix; under asynchronous
        scheduling a row may also have gone one step further.
        """
        shared = common_prefix(self.prefix, sequence)
        return shared >= len(sequence) - 1 and shared >= min(len(self.prefix), len(sequence))


def cohorts(rows: Sequence[tuple[int, Row]]) -> list[list[tuple[int, Row]]]:
    """Rows that agree on the version of every scorer; but for a change of versions, all do."""
    found: list[tuple[dict[str, Scorer], list[tuple[int, Row]]]] = []
    for index, row in rows:
        for versions, members in found:
            if all(versions.get(name, own) is own for name, own in row.scorers.items()):
                versions.update(row.scorers)
                members.append((index, row))
                break
        else:
            found.append((dict(row.scorers), [(index, row)]))
    return [members for _, members in found]


def members_of(
    name: str, rows: Sequence[Row], groups: Sequence[Ids], *, planned: bool
) -> list[int]:
    """Rows that need a scorer now, at a strength that is planned or at one that is known."""
    return [
        r
        for r, row in enumerate(rows)
        if name in row.weights
        and row.params.sets(name) == planned
        and len(groups[r]) > 1
        and row.fault is None
    ]
