"""Engine-neutral rows, which an adapter passes to the guide."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

from trimtab.params import MAX_BETA, GuidanceParams
from trimtab.scorers.base import Scorer
from trimtab.scores import StepScores
from trimtab.scoring.pool import NO_IDS, Ids, common_prefix
from trimtab.scoring.states import RowState
from trimtab.scoring.text import Prompt, PromptContext

ROUNDING = 1e-4
"""Tolerance for single-precision rounding, in nats."""

next_key = count().__next__
"""New row keys: a row that replaces another never reuses its key."""


@dataclass(frozen=True)
class RowFault:
    """Why a row lost its guidance."""

    scorer: str
    message: str
    overrun: bool = False  # the scorer took too long

    @property
    def fields(self) -> dict[str, Any]:
        """The fault, as fields of a record."""
        return {"scorer": self.scorer, "message": self.message, "overrun": self.overrun}


@dataclass
class StepPlan:
    """Strengths of one step and their cost, where they are set at every step: with a kl_budget,
    floors, ceilings or a utility."""

    spent: float = 0.0  # nats, before this step
    left: float = math.inf  # nats, expected cost allowed for this step and all later ones
    most: float = math.inf  # nats, maximum cost of the answer up to and including this step
    before: float = 0.0  # β of the last step that had one below the maximum, 0 if none had
    unit: float = 0.0  # Σ of the earlier steps' KL/β², without the cuts of the tail
    cut: float = 0.0  # nats that the earlier cuts cost
    behind: int = 0  # tokens of the answer before this step
    ahead: float = math.inf  # tokens that may follow, this one included; inf if unknown
    flat: float = 0.0  # nats of the earlier steps with β = 0, for bounds alone
    luck: dict[str, float] = field(default_factory=dict)  # what moved the bounds, see duals.py
    held: dict[str, float] = field(default_factory=dict)  # duals of the last step that had them
    eta: dict[str, float] = field(default_factory=dict)  # η of cvar, once known
    doubt: dict[str, float] = field(default_factory=dict)  # of bounded scorers, see Outlook
    beta: float | None = None  # with a kl_budget; None if there was one candidate
    duals: dict[str, float] = field(default_factory=dict)  # of scorers with a floor or ceiling
    after: dict[int, float] = field(default_factory=dict)  # nats left after each candidate
    rest: float = 0.0  # nats left after any other token
    gains: dict[str, dict[int, float]] = field(default_factory=dict)  # luck after each candidate
    gain: dict[str, float] = field(default_factory=dict)  # luck after any other token

    def after_token(self, token: int) -> "StepPlan":
        """What the next plan takes over of bounds and utilities, if this token is drawn."""
        luck = dict(self.luck)
        for name, gains in self.gains.items():
            luck[name] = luck.get(name, 0.0) + gains.get(token, self.gain[name])
        held = self.duals or self.held
        return StepPlan(luck=luck, held=held, eta=self.eta, doubt=self.doubt)

    def unsteered(self, spent: float, *, planned: bool) -> None:
        """Note that the step was the base's, and cost `spent` nats; planned: as all strengths 0."""
        self.after, self.rest = {}, self.left - spent
        if not planned:
            self.gains, self.gain = {}, {}

    @property
    def fields(self) -> dict[str, Any]:
        """The strengths, as fields of a record; empty if there was one candidate."""
        beta = {} if self.beta is None else {"beta": self.beta}
        return {**beta, **({"duals": self.duals} if self.duals else {})}


@dataclass
class Step:
    """Guidance at one position of a row."""

    kl: float  # nats
    scored: int  # candidates that were scored; 0 if there was only one
    trace: dict[str, Any] | None = None
    plan: StepPlan | None = None
    kl_tail: float = 0.0  # nats of `kl` that cutting the tail costs, before any steering
    parts: dict[str, float] = field(default_factory=dict)
    """With principles or a plan: the other nats, by scorer and principle; see parts.py."""


@dataclass(eq=False)
class Slot:
    """A place in the parameters on a device (slots.py), free again when no row has it any more."""

    owner: object
    index: int
    params: GuidanceParams
    stop: int
    fixed: Mapping[str, tuple[float, float]]


@dataclass
class Row:
    """One guided sequence. The adapter owns it and updates `prefix` every step."""

    params: GuidanceParams  # with scorers resolved
    prompt_length: int
    stop_token: int | None = None  # ends the row if its scorer fails
    record_key: str | None = None  # the front end fetches its record by this key
    context: PromptContext = field(default_factory=PromptContext)
    scorers: Mapping[str, Scorer] = field(default_factory=dict)
    """The versions that the row started with; for other names, the guide's current ones."""
    prefix: Ids = field(default_factory=lambda: NO_IDS)  # prompt and completion so far
    key: int = field(default_factory=next_key)
    fault: RowFault | None = None
    read: set[str] = field(default_factory=set)  # scorers that have read its prefix
    steps: dict[int, Step] = field(default_factory=dict)  # by position, so replays overwrite
    max_tokens: int | None = None  # of the answer, if the engine tells
    seconds: dict[str, float] = field(default_factory=dict)  # of the calls into each scorer
    scored: StepScores | None = None
    state: RowState | None = None  # the base's states, if a scorer reads them
    plan: StepPlan | None = None  # of this step, if its strengths are planned
    beside: Sequence[int] = ()  # rows of this step's logits after each of its principles
    untraced: bool = False  # its trace was dropped to save memory
    slot: Slot | None = field(default=None, repr=False)  # since its first step
    weighted: tuple[GuidanceParams, dict[str, float]] | None = field(default=None, repr=False)
    """Its weights, and the parameters that they are of."""
    earlier: "Row | None" = field(default=None, repr=False)
    """During a step, if this row's prefix ends with a draft token: the row without that token."""
    drafted: list["Row"] = field(default_factory=list, repr=False)
    """The rows after each draft token of the last step; see drafts.py."""

    @property
    def start(self) -> int:
        """Tokens before the answer."""
        return self.prompt_length if self.context.length is None else self.context.length

    @property
    def prompt(self) -> Prompt:
        """The prompt, for scorers that read text."""
        return Prompt(self.start, self.context.turns)

    @property
    def weights(self) -> dict[str, float]:
        """Scorers and principles that steer: with a non-zero weight, or a floor or ceiling."""
        if self.weighted is None or self.weighted[0] is not self.params:
            self.weighted = self.params, _weights(self.params)
        return self.weighted[1]

    def next_plan(self, band: float) -> StepPlan | None:
        """A plan for this step, without strengths; None if the request fixes them.

        `left` is what the last step's plan left, clamped so that spent + left stays within
        band·budget of the budget. A row without records of its earlier steps has nothing left.
        """
        if not self.params.planned:
            return None
        at = len(self.prefix)
        behind = max(at - self.prompt_length, 0)
        last = self.steps.get(at - 1) if behind else None
        past = last.plan if last is not None else None
        plan = StepPlan() if past is None else past.after_token(int(self.prefix[-1]))
        if self.params.kl_budget is None:
            return plan
        budget, most = self.params.kl_budget, (1 + band) * self.params.kl_budget
        ahead = math.inf if self.max_tokens is None else max(self.max_tokens - behind, 1)
        if behind == 0:
            return StepPlan(0.0, budget, most, ahead=ahead)
        if last is None or past is None:
            return StepPlan(most, 0.0, most)
        beta = past.beta or 0.0
        spent = past.spent + last.kl
        left = past.after.get(int(self.prefix[-1]), past.rest)
        steered = last.kl - last.kl_tail
        return replace(
            plan,
            spent=spent,
            left=min(max(left, (1 - band) * budget - spent), most - spent),
            most=most,
            before=beta if 0 < beta < MAX_BETA else past.before,
            unit=past.unit + steered / beta**2 if beta else past.unit,
            cut=past.cut + last.kl_tail,
            behind=behind,
            ahead=ahead,
            flat=past.flat + (steered if past.beta == 0 and self.params.bounded else 0.0),
        )

    def cuts(self, cost: float, share: float) -> bool:
        """Whether this step cuts the tail, which costs `cost` nats.

        A kl_budget pays it before any steering, but no more than a share of the nats left; if it
        costs more, the tail stays at this step and gets the mean.
        """
        if self.params.tail != "truncate":
            return False
        plan = self.plan
        return self.params.kl_budget is None or plan is None or cost <= share * plan.left

    def follows(self, sequence: Ids) -> bool:
        """Whether this row may have produced `sequence`, prompt included.

        A prefix never contains the last token of a finished sequence; with asynchronous
        scheduling a row may also be one step ahead.
        """
        shared = common_prefix(self.prefix, sequence)
        return shared >= len(sequence) - 1 and shared >= min(len(self.prefix), len(sequence))

    def match(self, sequence: Ids) -> "Row | None":
        """This row, or one after its draft tokens, that may have produced `sequence`."""
        return next((row for row in (self, *self.drafted) if row.follows(sequence)), None)


def _weights(params: GuidanceParams) -> dict[str, float]:
    scorers = {
        name: weight
        for name, weight in (params.scorers or {}).items()
        if weight != 0 or name in params.bounded
    }
    return scorers | {name: one.weight for name, one in params.said.items()}


def cohorts(rows: Sequence[tuple[int, Row]]) -> list[list[tuple[int, Row]]]:
    """Rows grouped by the versions of their scorers, and by whether k is "all"; usually one."""
    groups: list[tuple[bool, dict[str, Scorer], list[tuple[int, Row]]]] = []
    for index, row in rows:
        every = row.params.k == "all"
        for kind, versions, members in groups:
            same = all(versions.get(name, own) is own for name, own in row.scorers.items())
            if kind == every and same:
                versions.update(row.scorers)
                members.append((index, row))
                break
        else:
            groups.append((every, dict(row.scorers), [(index, row)]))
    return [members for _, _, members in groups]


def members_of(
    name: str, rows: Sequence[Row], groups: Sequence[Ids], *, planned: bool
) -> list[int]:
    """Indices of rows that need a scorer in this step, at a planned or at a fixed strength."""
    return [
        r
        for r, row in enumerate(rows)
        if name in row.weights
        and row.params.planned == planned
        and len(groups[r]) > 1
        and row.fault is None
    ]
