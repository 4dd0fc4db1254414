"""The scorers of rows: every call into a scorer, and the faults of rows for which it fails."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from trimtab import drafts
from trimtab.registry import Registry
from trimtab.rows import Row, RowFault, members_of
from trimtab.scorers.base import Scorer
from trimtab.scoring.calls import ScorerFailed, checked
from trimtab.scoring.common import CommonForward
from trimtab.scoring.pool import Ids
from trimtab.states import States
from trimtab.utility import kind_of

log = logging.getLogger("trimtab.guide")  # whoever reads the log need not know this module

HOST = torch.device("cpu")
LOST = "has no states of the base for this text"
"""The fault of a probe whose engine has none, or whose row's were lost."""


class RowScorers:
    """Calls scorers for rows."""

    def __init__(self, scorers: Mapping[str, Scorer], timeout: float = math.inf) -> None:
        """timeout: maximum seconds of a scorer per step, see ScorerCalls."""
        self.registry = Registry(scorers, timeout)
        self.states = States()

    def _announce(self, rows: Sequence[Row], groups: Sequence[Ids]) -> None:
        """Tell each backbone that several calls of this step read which rows these are.

        rows: of one cohort, so that a name is one version.
        """
        using = {name: row for row in rows for name in row.weights}
        calls: dict[CommonForward, list[tuple[str, list[int]]]] = {}
        for name, one in using.items():
            for backbone in self.registry.scorer_of(one, name).backbones:
                for planned in (False, True):
                    members = members_of(name, rows, groups, planned=planned)
                    if members:
                        calls.setdefault(backbone.common, []).append((name, members))
        for common, reading in calls.items():
            if len(reading) == 1:
                continue
            names = {name for name, _ in reading}
            some = sorted({r for _, members in reading for r in members})
            own = [rows[r] for r in some]
            fresh = sum(len(row.prefix) for row in own if names.isdisjoint(row.read))
            keys, prefixes = [row.key for row in own], [row.prefix for row in own]
            common.announce(keys, prefixes, [groups[r] for r in some], fresh)

    def score_rows(self, name: str, rows: Sequence[Row], groups: Sequence[Ids]) -> Tensor:
        """One scorer's scores, [Σ candidates] on the host; rows for which it fails get a fault."""
        return self._finite(name, rows, groups, self._read(name, rows, groups, HOST))

    def _read(
        self, name: str, rows: Sequence[Row], groups: Sequence[Ids], device: torch.device
    ) -> Tensor:
        """One scorer's scores, [Σ candidates]; they may not be finite."""

        def read(some: Sequence[Row], candidates: Sequence[Ids]) -> Callable[[], Tensor]:
            strengths = [self._strength(row, name) for row in some]
            keys, prefixes = [row.key for row in some], [row.prefix for row in some]
            prompts = [row.prompt for row in some]
            scorer = self.registry.scorer_of(some[0], name)
            more: dict[str, Any] = dict(self._states(scorer, some))
            if scorer.ensemble:
                more["cautions"] = [(row.params.caution or {}).get(name, 0.0) for row in some]
            return partial(scorer.score, keys, prefixes, candidates, strengths, prompts, **more)

        return self._result(name, rows, groups, read, (), device)

    def _read_stack(
        self, names: Sequence[str], rows: Sequence[Row], groups: Sequence[Ids], device: torch.device
    ) -> Tensor | None:
        """Scores of scorers that stack, [names, Σ candidates]; None if one of them must fail.

        Then each is called alone, so that a fault stays with its scorer and its row.
        """
        first, *others = (self.registry.scorer_of(rows[0], name) for name in names)
        calls = self.registry.calls
        failing = any(row.fault is not None for row in rows)
        if failing or any(calls.status(other).suspended for other in others):
            return None
        strengths = [[self._strength(row, name) for row in rows] for name in names]
        read = partial(first.score_stack, others, groups, strengths, self.states.of(rows))
        work = partial(checked, read, (len(names), sum(map(len, groups))), device)
        try:
            with self.registry.timings.call(names, rows):
                until = calls.until(first, 0, drafts.positions(rows))
                return calls.score(names[0], first, work, until)
        except ScorerFailed:
            return None

    def _result(
        self,
        name: str,
        rows: Sequence[Row],
        groups: Sequence[Ids],
        read: Callable[[Sequence[Row], Sequence[Ids]], Callable[[], Tensor]],
        shape: Sequence[int],
        device: torch.device,
        until: float | None = None,
    ) -> Tensor:
        """A scorer's result, [Σ candidates, *shape]; rows for which it raises get a fault."""
        sizes = [len(group) for group in groups]
        scorer = self.registry.scorer_of(rows[0], name)
        if until is None:
            fresh = sum(len(row.prefix) for row in rows if name not in row.read)
            fresh = max(fresh, *(backbone.common.fresh for backbone in scorer.backbones), 0)
            until = self.registry.calls.until(scorer, fresh, drafts.positions(rows))
        work = partial(checked, read(rows, groups), (sum(sizes), *shape), device)
        try:
            with self.registry.timings.call([name], rows):
                flat = self.registry.calls.score(name, scorer, work, until)
        except ScorerFailed as failure:
            if failure.retry and len(rows) > 1:  # retry row by row, within the remaining time
                pairs = zip(rows, groups, strict=True)
                return torch.cat(
                    [
                        self._result(name, [row], [group], read, shape, device, until)
                        for row, group in pairs
                    ]
                )
            if failure.retry:
                log.warning("scorer %s failed: %s", name, failure.message)
                log.debug("scorer %s failed", name, exc_info=failure.__cause__)
            for row in rows:
                self.fail(row, name, failure.message, overrun=failure.overrun)
            return torch.zeros(sum(sizes), *shape, device=device)
        for row in rows:
            row.read.add(name)
        return flat

    def _finite(
        self, name: str, rows: Sequence[Row], groups: Sequence[Ids], flat: Tensor
    ) -> Tensor:
        """A scorer's result without what is not finite; rows that have it get a fault."""
        if torch.isfinite(flat).all():
            return flat
        for row, result in zip(rows, flat.split([len(group) for group in groups]), strict=True):
            if row.fault is None and not torch.isfinite(result).all():
                self._refuse(name, row, row.prefix)
        return flat.nan_to_num(0.0, 0.0, 0.0)

    def _refuse(self, name: str, row: Row, prefix: Ids) -> None:
        """Give a fault to a row for which a scorer returned what is not finite at a prefix."""
        reads = self.registry.scorer_of(row, name).reads_states
        lost = reads and not self.states.of([replace(row, prefix=prefix)]).isfinite().all()
        reason = LOST if lost else "returned a score that is not finite"
        log.warning("scorer %s %s", name, reason)
        self.fail(row, name, reason)

    def _states(self, scorer: Scorer, rows: Sequence[Row]) -> dict[str, Tensor]:
        """The base's states of some rows, if the scorer reads them."""
        return {"states": self.states.of(rows)} if scorer.reads_states else {}

    def _weight(self, row: Row, name: str) -> float:
        """The factor of β: w, or 0 beside a floor.

        It is divided by the scorer's deviation if its scores are normalised, but for utilities
        that are probabilities.
        """
        if name in (row.params.floors or {}):
            return 0.0
        weight = row.weights.get(name, 0.0)  # a scorer of weight 0 is reported too
        if not row.params.normalize:
            return weight
        if kind_of(row.params.utility_of(name))[0] in ("at_least", "at_most"):
            return weight
        return weight / self.registry.scorer_of(row, name).info.deviation

    def _beta(self, row: Row) -> float:
        """β of this step."""
        plan = row.plan
        return row.params.beta if plan is None or plan.beta is None else plan.beta

    def _strength(self, row: Row, name: str) -> float:
        """The factor of a scorer's scores: β times its weight, plus the dual of its bounds."""
        dual = 0.0 if row.plan is None else row.plan.duals.get(name, 0.0)
        return self._beta(row) * self._weight(row, name) + dual

    def fail(self, row: Row, scorer: str, message: str, *, overrun: bool = False) -> None:
        """Remove a row from guidance permanently."""
        row.fault = RowFault(scorer, message, overrun)
        self.registry.note_fault(row, scorer, message)
