"""The guide: one step of guidance for a batch of rows, on any engine.

    candidates of each row → scores of each scorer → bonus → fused logits, KL, records

With a kl_budget or floors, the strengths are computed first, from the scorers' returns.

A scorer that fails removes its own rows from guidance; the step continues. What a step did leaves
the device while nobody waits (`late`).
"""

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any
from weakref import WeakMethod

import numpy as np
import torch
from torch import Tensor

from trimtab import budget, control, drafts
from trimtab.candidates import Candidates
from trimtab.choice import Choice
from trimtab.fusion import Fused, divergence, end_, fuse_
from trimtab.outcome import Outcome, Pending, Seen
from trimtab.outlook import Outlook
from trimtab.records import Records
from trimtab.row_scorers import RowScorers
from trimtab.rows import Row, Step, cohorts, members_of
from trimtab.scorers.base import Scorer
from trimtab.scores import Scores, StepScores, bonus_of, planned, scored
from trimtab.scoring.pool import Ids
from trimtab.verdict import Verdict, stops
from trimtab_models.readout import soft_value
from trimtab_models.transfers import upload


class Guide(RowScorers):
    """Applies scorers to logits, step by step."""

    def __init__(self, scorers: Mapping[str, Scorer], timeout: float = math.inf) -> None:
        """timeout: maximum seconds of a scorer per step, see ScorerCalls."""
        super().__init__(scorers, timeout)
        # Weak, so that a guide, and its scorers' thread, end with its last reference.
        self.records = Records(
            self.registry, WeakMethod(self.score_rows), WeakMethod(self.catch_up)
        )
        self.late = False
        """Whether what a step did is noted only when it is asked for, or at the next step.

        Then no step waits for it. Until then no row has a fault that the device alone knows."""
        self.pending: deque[Pending] = deque()

    def step(
        self,
        logits: Tensor,
        rows: Sequence[tuple[int, Row]],
        hidden: Tensor | None = None,
        done: list[Fused] | None = None,
    ) -> None:
        """Guide one decode step, in place.

        logits: [batch, vocab] float32; rows: (index into logits, row with its current prefix);
        hidden: [batch, hidden], the base's states behind the logits, which probes read.
        A row may be followed by those after its draft tokens (drafts.py), in their order.
        done: gets what was done to the logits, but for rows with k = "all".
        """
        self.catch_up()
        done = [] if done is None else done
        if hidden is not None:
            reading = [(i, row) for i, row in rows if self.registry.reads_states(row)]
            for level in drafts.levels(reading):
                self.states.follow(level, hidden)
        for _, row in rows:
            self.records.keep(row)
        failed: list[tuple[int, Row]] = []
        for wave in drafts.waves(rows):
            self.catch_up()  # a wave continues the one before
            drafts.pass_on_faults(row for _, row in wave)
            failed += [(i, row) for i, row in wave if row.fault is not None]
            active = [(i, row) for i, row in wave if row.params.steers and row.fault is None]
            for cohort in cohorts(active):
                self._step(logits, cohort, done)
        if failed:
            ended = end_(logits, [i for i, _ in failed], stops([row for _, row in failed]))
            done += [] if ended is None else [ended]
        if not self.late:
            self.catch_up()

    def catch_up(self) -> None:
        """Note what the last step did: the faults and the records of its rows."""
        while self.pending:
            self._note(self.pending.popleft())

    def _step(self, logits: Tensor, active: Sequence[tuple[int, Row]], done: list[Fused]) -> None:
        """One step of a cohort, which waits for the device once: for the candidates."""
        device = logits.device
        rows, index = [row for _, row in active], [i for i, _ in active]
        place = upload(torch.tensor(index), device)
        # Usually all rows are guided in order: then no [rows, vocab] tensor is copied.
        whole = index == list(range(len(logits)))
        base = logits if whole else logits[place]  # [rows, vocab]
        for row in rows:
            row.plan = row.next_plan(budget.BAND)
        choice = Choice.of(base, rows)
        candidates, groups, cuts = choice.candidates, choice.groups, choice.cuts
        keeps = [not row.cuts(cost, budget.SHARE) for row, cost in zip(rows, cuts, strict=True)]
        tail_mean = upload(torch.tensor(keeps), device)
        step = self._score(rows, groups, candidates)
        if any(row.plan is not None for row in rows):
            tables: dict[str, Tensor] = {}
            self._plan(rows, groups, choice.host, torch.tensor(keeps), tables)
            step += [planned(name, values, candidates.logprobs) for name, values in tables.items()]
        bonus = self._bonus(rows, step, candidates)
        drafts.pass_on_faults(rows)
        kl, log_z = divergence(candidates, bonus, tail_mean)
        verdict = Verdict.of(logits, place, rows, candidates, bonus, kl)
        traced = any(row.params.trace and not row.untraced for row in rows)
        outcome = Outcome(candidates, step, bonus, kl, log_z, verdict, traced=traced)
        made = fuse_(logits, index, candidates, bonus, tail_mean, verdict)
        done += [] if made is None else [made]
        paid = [0.0 if kept else cost for kept, cost in zip(keeps, cuts, strict=True)]
        self.pending.append(Pending(rows, groups, paid, outcome))

    def _note(self, pending: Pending) -> None:
        """Note the faults and the records of a step's rows."""
        seen, rows = pending.outcome.read(), pending.rows
        self._note_faults(pending, seen)
        for row, earlier in zip(rows, pending.earlier, strict=True):
            if row.fault is None and earlier is not None:
                row.fault = earlier.fault
        for r, row in enumerate(rows):
            plan, prefix, group = pending.plans[r], pending.prefixes[r], pending.groups[r]
            if row.fault is not None or (row.record_key is None and plan is None):
                continue
            kl = seen.kl[r] if seen.guided[r] else 0.0
            row.scored = StepScores(len(prefix), group, r, seen.step)
            n, trace = len(group), None
            if plan is not None and (n == 1 or not seen.guided[r]):
                plan.rest = plan.left - kl
                plan.after = {}
            if seen.shown is not None and row.params.trace and not row.untraced:
                trace = seen.shown.trace(r, n, seen.guided[r])
                trace |= plan.fields if plan is not None else {}
            step = Step(kl, n if n > 1 else 0, trace, plan, min(pending.cuts[r], kl))
            self.records.add(row, len(prefix), step)

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

    def _plan(
        self,
        rows: Sequence[Row],
        groups: Sequence[Ids],
        candidates: Candidates,
        tail_mean: Tensor,
        scores: dict[str, Tensor],
    ) -> None:
        """Set the strengths of rows with a kl_budget or floors, and add their scores.

        candidates, tail_mean: on the host.
        """
        outlooks: dict[str, Outlook] = {}
        for name in dict.fromkeys(name for row in rows for name in row.weights):
            members = members_of(name, rows, groups, planned=True)
            if members:
                outlooks[name] = self._outlook(name, rows, groups, members)
        if not outlooks:
            return
        exact = replace(candidates, logprobs=candidates.logprobs.double())
        control.follow(rows, outlooks, exact, tail_mean)
        for name, outlook in outlooks.items():
            at = outlook.row, outlook.place
            values = scores.setdefault(name, _unscored(groups))
            if not outlook.distributional:
                values[at] = outlook.returns[:, 0].float()
                continue
            c = torch.tensor([self._strength(rows[r], name) for r in outlook.row.tolist()])
            values[at] = soft_value(outlook.log_p, outlook.returns, c)

    def _outlook(
        self, name: str, rows: Sequence[Row], groups: Sequence[Ids], members: Sequence[int]
    ) -> Outlook:
        """A scorer's return distributions, or else its scores, for the candidates of some rows."""
        scorer: Any = self.registry.scorer_of(rows[members[0]], name)

        def read(some: Sequence[Row], candidates: Sequence[Ids]) -> Callable[[], Tensor]:
            keys, prefixes = [row.key for row in some], [row.prefix for row in some]
            prompts = [row.prompt for row in some]
            states = self._states(scorer, some)
            return partial(scorer.histograms, keys, prefixes, candidates, prompts, **states)

        selected, candidates = [rows[r] for r in members], [groups[r] for r in members]
        weight = torch.zeros(len(rows), dtype=torch.float64)
        for r in members:
            if rows[r].params.kl_budget is not None:
                weight[r] = self._weight(rows[r], name)
        row, place = map(torch.from_numpy, _places(members, candidates))
        if not scorer.distributional:
            scores = self.score_rows(name, selected, candidates)
            return Outlook.certain(scores, row, place, weight)
        logits = self._call(name, selected, candidates, read, scorer.returns.shape)
        log_p = logits.double().log_softmax(-1)
        return Outlook(log_p, scorer.returns.double(), row, place, weight, scorer.foresees)

    def _note_faults(self, pending: Pending, seen: Seen) -> None:
        """Give a fault to rows whose bonus was not finite."""
        for r, row in enumerate(pending.rows):
            if seen.finite[r] or row.fault is not None:
                continue
            own = [pair for scores in seen.step for pair in scores.of(r).items()]
            name = next((name for name, values in own if not values.isfinite().all()), None)
            if name is not None:
                self._refuse(name, row, pending.prefixes[r])
            else:
                self.fail(row, next(iter(row.weights)), "gave a score too large to use")

    def _bonus(self, rows: Sequence[Row], step: Sequence[Scores], candidates: Candidates) -> Tensor:
        """β·Σ_i w_i·s_i, [rows, k] float32; 0 for rows that nothing scores."""
        factors = []
        for scores in step:
            factors.append(np.zeros((2, len(scores.names), len(rows))))
            c, mean = factors[-1]
            for i, name in enumerate(scores.names):
                for r in scores.members:
                    c[i, r] = self._strength(rows[r], name)
                    if rows[r].params.normalize:
                        mean[i, r] = self.registry.scorer_of(rows[r], name).info.mean
        return bonus_of(step, factors, candidates.logprobs)


def _places(members: Sequence[int], groups: Sequence[Ids]) -> tuple[Ids, Ids]:
    """Row, and index in the row, of each packed candidate, each [Σ candidates] int64."""
    sizes = [len(group) for group in groups]
    return np.repeat(members, sizes), np.concatenate([np.arange(size) for size in sizes])


def _unscored(groups: Sequence[Ids]) -> Tensor:
    return torch.full((len(groups), max(map(len, groups))), torch.nan)
