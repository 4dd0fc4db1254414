"""The guide: one step of guidance for a batch of rows, on any engine.

    candidates of each row → scores of each scorer → bonus → fused logits, KL, records

With a kl_budget or floors, the strengths are computed first, from the scorers' return
distributions.

The logits change only after all results are known. A scorer that fails removes its own rows from
guidance; the step continues.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any
from weakref import WeakMethod

import numpy as np
import torch
from torch import Tensor

from trimtab import control
from trimtab.candidates import Candidates
from trimtab.choice import Choice
from trimtab.fusion import fuse_
from trimtab.outcome import Outcome
from trimtab.records import Records
from trimtab.registry import Registry
from trimtab.rows import Row, RowFault, Step, cohorts, members_of
from trimtab.scorers.base import Scorer
from trimtab.scores import Scores, StepScores, bonus_of, planned, scored
from trimtab.scoring.calls import ScorerFailed, checked
from trimtab.scoring.pool import Ids
from trimtab.states import States
from trimtab_models.readout import soft_value
from trimtab_models.transfers import upload

log = logging.getLogger(__name__)

HOST = torch.device("cpu")
LOST = "has no states of the base for this text"
"""The fault of a probe whose engine has none, or whose row's were lost."""


class Guide:
    """Applies scorers to logits, step by step."""

    def __init__(self, scorers: Mapping[str, Scorer], timeout: float = math.inf) -> None:
        """timeout: maximum seconds of a scorer per step, see ScorerCalls."""
        self.registry = Registry(scorers, timeout)
        # Weak, so that a guide, and its scorers' thread, end with its last reference.
        self.records = Records(self.registry, WeakMethod(self.score_rows))
        self.states = States()

    def step(
        self, logits: Tensor, rows: Sequence[tuple[int, Row]], hidden: Tensor | None = None
    ) -> None:
        """Guide one decode step, in place.

        logits: [batch, vocab] float32; rows: (index into logits, row with its current prefix);
        hidden: [batch, hidden], the base's states behind the logits, which probes read.
        """
        if hidden is not None:
            reading = [(i, row) for i, row in rows if self.registry.reads_states(row)]
            self.states.follow(reading, hidden)
        for _, row in rows:
            self.records.keep(row)
        active = [(i, row) for i, row in rows if row.params.steers and row.fault is None]
        for cohort in cohorts(active):
            self._step(logits, cohort)
        for index, row in rows:
            if row.fault is not None and row.params.on_error == "fail":
                _end(logits[index], row)

    def _step(self, logits: Tensor, active: Sequence[tuple[int, Row]]) -> None:
        """One step of a cohort, with two waits for the device: for candidates, for the outcome."""
        device = logits.device
        rows, index = [row for _, row in active], [i for i, _ in active]
        # Usually all rows are guided in order: then no [rows, vocab] tensor is copied.
        whole = index == list(range(len(logits)))
        base = logits if whole else logits[upload(torch.tensor(index), device)]  # [rows, vocab]
        for row in rows:
            row.plan = row.next_plan(control.BAND)
        choice = Choice.of(base, rows)
        candidates, groups, cuts = choice.candidates, choice.groups, choice.cuts
        keeps = [not row.cuts(cost, control.SHARE) for row, cost in zip(rows, cuts, strict=True)]
        tail_mean = upload(torch.tensor(keeps), device)
        step = self._score(rows, groups, candidates)
        if any(row.plan is not None for row in rows):
            tables: dict[str, Tensor] = {}
            self._plan(rows, groups, choice.host, torch.tensor(keeps), tables)
            step += [planned(name, values, candidates.logprobs) for name, values in tables.items()]
        bonus = self._bonus(rows, step, candidates)
        traced = any(row.params.trace and not row.untraced for row in rows)
        outcome = Outcome.read(candidates, step, bonus, tail_mean, traced=traced)
        self._note_faults(rows, step, outcome.finite)
        spent, kept = outcome.kl, []
        for r, row in enumerate(rows):
            single = len(groups[r]) == 1
            if row.plan is not None and row.plan.leaves_base(spent[r], single, outcome.steers[r]):
                spent[r] = 0.0
            elif row.fault is None:
                kept.append(r)
        if len(kept) == len(rows):
            fuse_(logits, index, candidates, bonus, tail_mean)
        elif kept:
            some = upload(torch.tensor(kept), device)
            places = [index[r] for r in kept]
            fuse_(logits, places, candidates.rows(some), bonus[some], tail_mean[some])
        for r, row in enumerate(rows):
            plan, n, trace = row.plan, len(groups[r]), None
            if row.fault is not None or (row.record_key is None and plan is None):
                continue
            row.scored = StepScores(len(row.prefix), groups[r], r, outcome.step)
            if plan is not None and (n == 1 or r not in kept):
                plan.rest = plan.left - spent[r]
                plan.after = {}
            if outcome.shown is not None and row.params.trace and not row.untraced:
                trace = outcome.shown.trace(r, n, r in kept)
                trace |= plan.fields if plan is not None else {}
            kl_tail = 0.0 if keeps[r] else min(cuts[r], spent[r])
            self.records.add(row, Step(spent[r], n if n > 1 else 0, trace, plan, kl_tail))

    def _score(
        self, rows: Sequence[Row], groups: Sequence[Ids], candidates: Candidates
    ) -> list[Scores]:
        """Scores of the scorers whose strength is fixed.

        A row with a single candidate needs no scores; rows with planned strengths follow in _plan.
        """
        step, like = list[Scores](), candidates.logprobs
        for names, members in self._together(rows, groups, candidates.whole):
            own, theirs = [rows[r] for r in members], [groups[r] for r in members]
            stack = self._read_stack(names, own, theirs, like.device) if names[1:] else None
            if stack is not None:
                step.append(scored(names, stack, members, theirs, like))
                continue
            for name in names:
                left = [r for r in members if rows[r].fault is None]
                if left:
                    own, theirs = [rows[r] for r in left], [groups[r] for r in left]
                    flat = self._read(name, own, theirs, like.device)
                    step.append(scored([name], flat[None], left, theirs, like))
        return step

    def _together(
        self, rows: Sequence[Row], groups: Sequence[Ids], whole: bool
    ) -> list[tuple[list[str], list[int]]]:
        """Scorers with fixed strengths, and their rows; together those that stack.

        A stack of whole vocabularies would take too much memory.
        """
        stacks: dict[Any, tuple[list[str], list[int]]] = {}
        for name in dict.fromkeys(name for row in rows for name in row.weights):
            members = members_of(name, rows, groups, planned=False)
            if members:
                kind = None if whole else self.registry.scorer_of(rows[members[0]], name).stacks
                key = name if kind is None else (kind, *members)
                stacks.setdefault(key, ([], members))[0].append(name)
        return list(stacks.values())

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
            return calls.score(names[0], first, work, calls.until(first, 0))
        except ScorerFailed:
            return None

    def _plan(
        self,
        rows: Sequence[Row],
        groups: Sequence[Ids],
        candidates: Candidates,
        tail_mean: Tensor,
        scores: dict[str, Tensor],
    ) -> None:
        """Set the strengths of rows with a kl_budget or floors, and add their scores."""
        outlooks = {}
        for name in dict.fromkeys(name for row in rows for name in row.weights):
            members = members_of(name, rows, groups, planned=True)
            if members:
                outlooks[name] = self._outlook(name, rows, groups, members)
        if not outlooks:
            return
        host = Candidates(
            candidates.tokens.cpu(), candidates.logprobs.double().cpu(), candidates.counts.cpu()
        )
        control.follow(rows, outlooks, host, tail_mean.cpu())
        for name, outlook in outlooks.items():
            c = torch.tensor([self._strength(rows[r], name) for r in outlook.row.tolist()])
            values = soft_value(outlook.log_p, outlook.returns, c)
            scores.setdefault(name, _unscored(groups))[outlook.row, outlook.place] = values

    def _outlook(
        self, name: str, rows: Sequence[Row], groups: Sequence[Ids], members: Sequence[int]
    ) -> control.Outlook:
        """A scorer's return distributions for the candidates of some rows."""
        scorer: Any = self.registry.scorer_of(rows[members[0]], name)  # a DistributionScorer

        def read(some: Sequence[Row], candidates: Sequence[Ids]) -> Callable[[], Tensor]:
            keys, prefixes = [row.key for row in some], [row.prefix for row in some]
            prompts = [row.prompt for row in some]
            states = self._states(scorer, some)
            return partial(scorer.histograms, keys, prefixes, candidates, prompts, **states)

        selected, candidates = [rows[r] for r in members], [groups[r] for r in members]
        logits = self._call(name, selected, candidates, read, scorer.returns.shape)
        weight = torch.zeros(len(rows), dtype=torch.float64)
        for r in members:
            if rows[r].params.kl_budget is not None:
                weight[r] = self._weight(rows[r], name)
        row, place = map(torch.from_numpy, _places(members, candidates))
        log_p = logits.double().log_softmax(-1)
        return control.Outlook(log_p, scorer.returns.double(), row, place, weight)

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
            states = self._states(scorer, some)
            return partial(scorer.score, keys, prefixes, candidates, strengths, prompts, **states)

        return self._result(name, rows, groups, read, (), device)

    def _call(
        self,
        name: str,
        rows: Sequence[Row],
        groups: Sequence[Ids],
        read: Callable[[Sequence[Row], Sequence[Ids]], Callable[[], Tensor]],
        shape: Sequence[int],
    ) -> Tensor:
        """A scorer's finite result, [Σ candidates, *shape] on the host; failed rows get a fault."""
        return self._finite(name, rows, groups, self._result(name, rows, groups, read, shape, HOST))

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
            until = self.registry.calls.until(scorer, fresh)
        work = partial(checked, read(rows, groups), (sum(sizes), *shape), device)
        try:
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
            if not torch.isfinite(result).all():
                self._refuse(name, row)
        return flat.nan_to_num(0.0, 0.0, 0.0)

    def _note_faults(
        self, rows: Sequence[Row], step: Sequence[Scores], finite: Sequence[bool]
    ) -> None:
        """Give a fault to rows whose bonus is not finite."""
        for r, row in enumerate(rows):
            if finite[r] or row.fault is not None:
                continue
            own = [pair for scores in step for pair in scores.of(r).items()]
            name = next((name for name, values in own if not values.isfinite().all()), None)
            if name is not None:
                self._refuse(name, row)
            else:
                self.fail(row, next(iter(row.weights)), "gave a score too large to use")

    def _refuse(self, name: str, row: Row) -> None:
        """Give a fault to a row for which a scorer returned what is not finite."""
        reads = self.registry.scorer_of(row, name).reads_states
        lost = reads and not self.states.of([row]).isfinite().all()
        reason = LOST if lost else "returned a score that is not finite"
        log.warning("scorer %s %s", name, reason)
        self.fail(row, name, reason)

    def _states(self, scorer: Scorer, rows: Sequence[Row]) -> dict[str, Tensor]:
        """The base's states of some rows, if the scorer reads them."""
        return {"states": self.states.of(rows)} if scorer.reads_states else {}

    def _weight(self, row: Row, name: str) -> float:
        """The factor of β: w, divided by the scorer's deviation if its scores are normalised."""
        weight = (row.params.scorers or {})[name]
        return (
            weight / self.registry.scorer_of(row, name).info.deviation
            if row.params.normalize
            else weight
        )

    def _strength(self, row: Row, name: str) -> float:
        """The factor of a scorer's scores: β times its weight, or the dual weight of its floor."""
        plan, beta = row.plan, row.params.beta
        if plan is not None and name in plan.duals:
            return plan.duals[name]
        if plan is not None and plan.beta is not None:
            beta = plan.beta
        return beta * self._weight(row, name)

    def _bonus(self, rows: Sequence[Row], step: Sequence[Scores], candidates: Candidates) -> Tensor:
        """β·Σ_i w_i·s_i, [rows, k] float32; 0 for rows that nothing scores."""
        factors = []
        for scores in step:
            factors.append(np.zeros((2, len(scores.names), len(rows)), dtype=np.float32))
            c, mean = factors[-1]
            for i, name in enumerate(scores.names):
                for r in scores.members:
                    c[i, r] = self._strength(rows[r], name)
                    if rows[r].params.normalize:
                        mean[i, r] = self.registry.scorer_of(rows[r], name).info.mean
        return bonus_of(step, factors, candidates.logprobs)

    def fail(self, row: Row, scorer: str, message: str, *, overrun: bool = False) -> None:
        """Remove a row from guidance permanently."""
        row.fault = RowFault(scorer, message, overrun)
        self.registry.note_fault(row, scorer, message)


def _end(logits: Tensor, row: Row) -> None:
    """Allow only the stop token, so that the request ends now; its record has the reason."""
    if row.stop_token is not None and torch.isfinite(logits[row.stop_token]):
        value = logits[row.stop_token].clone()
        logits.fill_(-torch.inf)
        logits[row.stop_token] = value


def _places(members: Sequence[int], groups: Sequence[Ids]) -> tuple[Ids, Ids]:
    """Row, and index in the row, of each packed candidate, each [Σ candidates] int64."""
    sizes = [len(group) for group in groups]
    return np.repeat(members, sizes), np.concatenate([np.arange(size) for size in sizes])


def _unscored(groups: Sequence[Ids]) -> Tensor:
    return torch.full((len(groups), max(map(len, groups))), torch.nan)
