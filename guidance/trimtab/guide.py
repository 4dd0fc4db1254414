"""The guide: one step of guidance for a batch of rows, on any engine.

    candidates of each row → scores of each scorer → bonus → fused logits, KL, records

With a kl_budget, floors, ceilings or a utility, the strengths are computed first, from the scorers'
returns.

A scorer that fails removes its own rows from guidance; the step continues. What a step did leaves
the device while nobody waits (`late`).
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakMethod

import torch
from torch import Tensor

from trimtab import budget, contrast, drafts, parts
from trimtab.candidates import Candidates
from trimtab.choice import Choice, Choices
from trimtab.fusion import Fused, divergence, end_, fuse_
from trimtab.outcome import Outcome, Pending, Seen
from trimtab.planned_scorers import PlannedScorers
from trimtab.records import Records
from trimtab.rows import ROUNDING, Row, Step, cohorts, members_of
from trimtab.scorers.base import Scorer
from trimtab.scores import Scores, StepScores, bonus_of, scored
from trimtab.scoring.pool import Ids
from trimtab.slots import Held, Slots, stop_of
from trimtab.verdict import Verdict
from trimtab_models.transfers import upload


class Guide(PlannedScorers):
    """Applies scorers to logits, step by step."""

    def __init__(self, scorers: Mapping[str, Scorer], timeout: float = math.inf) -> None:
        """timeout: maximum seconds of a scorer per step, see ScorerCalls."""
        super().__init__(scorers, timeout)
        # Weak, so that a guide, and its scorers' thread, end with its last reference.
        self.records = Records(
            self.registry,
            WeakMethod(self.score_rows),
            WeakMethod(self.catch_up),
            WeakMethod(self.read_utility),
        )
        self.late = False
        """Whether what a step did is noted only when it is asked for, or at the next step.

        Then no step waits for it. Until then no row has a fault that the device alone knows."""
        self.pending: deque[Pending] = deque()
        self.slots: Slots | None = None

    def step(
        self,
        logits: Tensor,
        rows: Sequence[tuple[int, Row]],
        hidden: Tensor | None = None,
        done: list[Fused] | None = None,
        choices: Choices | None = None,
    ) -> None:
        """Guide one decode step, in place.

        logits: [batch, vocab] float32; rows: (index into logits, row with its current prefix);
        hidden: [batch, hidden], the base's states behind the logits, which probes read.
        A row may be followed by those after its draft tokens (drafts.py), in their order.
        done: gets what was done to the logits, but for rows with k = "all".
        choices: what `choose` gave for these rows, if it was asked.
        """
        self.catch_up()
        done = [] if done is None else done
        if hidden is not None:
            reading = [(i, row) for i, row in rows if self.registry.reads_states(row)]
            for level in drafts.levels(reading):
                self.states.follow(level, hidden)
        for _, row in rows:
            self.records.keep(row)
        contrast.show(self.registry.principles, logits, rows)
        choices = choices or self.choose(logits, rows)
        failed: list[tuple[int, Row]] = []
        for wave in drafts.waves(rows):
            self.catch_up()  # a wave continues the one before
            drafts.pass_on_faults(row for _, row in wave)
            failed += [(i, row) for i, row in wave if row.fault is not None]
            active = [(i, row) for i, row in wave if row.params.steers and row.fault is None]
            for cohort in cohorts(active):
                self._step(logits, cohort, choices, done)
        contrast.show(self.registry.principles, None)
        if failed:
            ended = end_(logits, [i for i, _ in failed], [stop_of(row) for _, row in failed])
            done += [] if ended is None else [ended]
        if not self.late:
            self.catch_up()

    def catch_up(self) -> None:
        """Note what the last step did: the faults and the records of its rows."""
        while self.pending:
            self._note(self.pending.popleft())

    def choose(self, logits: Tensor, rows: Sequence[tuple[int, Row]]) -> Choices | None:
        """Begin to choose the candidates of a step's rows; None if there is nothing to choose.

        No prefix is read, so an engine may let them reach the host in one copy with its tokens.
        """
        some = [(i, row) for i, row in rows if row.params.steers and row.params.k != "all"]
        return Choices(logits, some, self._held(logits.device, some)) if some else None

    def _held(self, device: torch.device, rows: Sequence[tuple[int, Row]]) -> Held:
        """The parameters of some rows on the device."""
        if self.slots is None or self.slots.device != device:
            self.slots = Slots(device)
        return self.slots.of([i for i, _ in rows], [row for _, row in rows], self._fixed)

    def _step(
        self,
        logits: Tensor,
        active: Sequence[tuple[int, Row]],
        choices: Choices | None,
        done: list[Fused],
    ) -> None:
        """One step of a cohort; it waits for the device if the choices have not arrived."""
        device, held = logits.device, self._held(logits.device, active)
        rows, index = [row for _, row in active], [i for i, _ in active]
        for row in rows:
            row.plan = row.next_plan(budget.BAND)
        if rows[0].params.k == "all" or choices is None:
            choice = Choice.whole(held.rows_of(logits))
        else:
            choice = choices.of(active)
        candidates, groups, cuts = choice.candidates, choice.groups, choice.cuts
        keeps = [not row.cuts(cost, budget.SHARE) for row, cost in zip(rows, cuts, strict=True)]
        tail_mean = held.tail_mean
        self._announce(rows, groups)
        step = self._score(rows, groups, candidates, held)
        scales = [held.scales(scores.names) for scores in step]
        if any(row.params.normalize for row in rows):  # what is not scored has no mean
            scales = [(c, mean.where(candidates.several, 0.0)) for c, mean in scales]
        if any(row.plan is not None for row in rows):
            tail_mean = upload(torch.tensor(keeps), device)
            last = self._plan(rows, groups, choice.host, torch.tensor(keeps), candidates.logprobs)
            step += [scores for scores, _ in last]
            scales += [own for _, own in last]
        bonus = bonus_of(step, scales, candidates.logprobs)
        drafts.pass_on_faults(rows)
        kl, log_z = divergence(candidates, bonus, tail_mean)
        verdict = Verdict.of(logits, rows, held, candidates, bonus, kl)
        traced = any(row.params.trace and not row.untraced for row in rows)
        divided = parts.shares(rows, step, scales, candidates, bonus, tail_mean)
        outcome = Outcome(candidates, step, bonus, kl, log_z, verdict, divided, traced=traced)
        made = fuse_(logits, index, held.place, candidates, bonus, tail_mean, verdict)
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
                plan.unsteered(kl, planned=seen.kl[r] <= ROUNDING)
            if seen.shown is not None and row.params.trace and not row.untraced:
                trace = seen.shown.trace(r, n, seen.guided[r])
                trace |= plan.fields if plan is not None else {}
            cut = min(pending.cuts[r], kl)
            step = Step(kl, n if n > 1 else 0, trace, plan, cut)
            if seen.shares is not None and (row.params.said or row.params.planned):
                step.parts = seen.shares.of(r, kl - cut)
            self.records.add(row, len(prefix), step)

    def _score(
        self, rows: Sequence[Row], groups: Sequence[Ids], candidates: Candidates, held: Held
    ) -> list[Scores]:
        """Scores of the scorers whose strength is fixed.

        A row with a single candidate needs no scores; rows with planned strengths follow in _plan.
        """
        step, device = list[Scores](), candidates.tokens.device

        def add(names: Sequence[str], flat: Tensor, members: Sequence[int]) -> None:
            member = held.uses(names[0]) & candidates.several
            if any(row.fault is not None for row in rows):  # it may be left out
                member = torch.zeros(len(rows), dtype=torch.bool)
                member[list(members)] = True
                member = upload(member, device)
            step.append(scored(names, flat, members, member, candidates))

        for names, members in self._together(rows, groups, candidates.whole):
            own, theirs = [rows[r] for r in members], [groups[r] for r in members]
            stack = self._read_stack(names, own, theirs, device) if names[1:] else None
            if stack is not None:
                add(names, stack, members)
                continue
            for name in names:
                left = [r for r in members if rows[r].fault is None]
                if left:
                    own, theirs = [rows[r] for r in left], [groups[r] for r in left]
                    add([name], self._read(name, own, theirs, device)[None], left)
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

    def _fixed(self, row: Row) -> dict[str, tuple[float, float]]:
        """Factors and means of a row's scorers whose strength is fixed, see Slots."""
        return {
            name: (row.params.beta * self._weight(row, name), self._mean(row, name))
            for name in row.weights
            if not row.params.planned
        }
