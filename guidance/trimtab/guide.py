"""The guide: one step of guidance for a batch of rows, on any engine.

    candidates of each row → scores of each scorer → bonus → fused logits, KL, records

With a kl_budget or floors, the strengths are computed first, from the scorers' returns.

The logits change only after all results are known. A scorer that fails removes its own rows from
guidance; the step continues.
"""

import math
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
from trimtab.fusion import Fused, fuse_
from trimtab.outcome import Outcome
from trimtab.outlook import Outlook
from trimtab.records import Records
from trimtab.row_scorers import RowScorers
from trimtab.rows import Row, Step, cohorts, members_of
from trimtab.scorers.base import Scorer
from trimtab.scores import Scores, StepScores, bonus_of, planned, scored
from trimtab.scoring.pool import Ids
from trimtab_models.readout import soft_value
from trimtab_models.transfers import upload


class Guide(RowScorers):
    """Applies scorers to logits, step by step."""

    def __init__(self, scorers: Mapping[str, Scorer], timeout: float = math.inf) -> None:
        """timeout: maximum seconds of a scorer per step, see ScorerCalls."""
        super().__init__(scorers, timeout)
        # Weak, so that a guide, and its scorers' thread, end with its last reference.
        self.records = Records(self.registry, WeakMethod(self.score_rows))

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
        done = [] if done is None else done
        if hidden is not None:
            reading = [(i, row) for i, row in rows if self.registry.reads_states(row)]
            for level in drafts.levels(reading):
                self.states.follow(level, hidden)
        for _, row in rows:
            self.records.keep(row)
        for wave in drafts.waves(rows):
            drafts.pass_on_faults(row for _, row in wave)
            active = [(i, row) for i, row in wave if row.params.steers and row.fault is None]
            for cohort in cohorts(active):
                self._step(logits, cohort, done)
        for index, row in rows:
            if row.fault is not None and row.params.on_error == "fail":
                done += _ended(logits, index, row)

    def _step(self, logits: Tensor, active: Sequence[tuple[int, Row]], done: list[Fused]) -> None:
        """One step of a cohort, with two waits for the device: for candidates, for the outcome."""
        device = logits.device
        rows, index = [row for _, row in active], [i for i, _ in active]
        # Usually all rows are guided in order: then no [rows, vocab] tensor is copied.
        whole = index == list(range(len(logits)))
        base = logits if whole else logits[upload(torch.tensor(index), device)]  # [rows, vocab]
        for row in rows:
            row.plan = row.next_plan(budget.BAND)
        choice = Choice.of(base, rows)
        candidates, groups, cuts = choice.candidates, choice.groups, choice.cuts
        keeps = [not row.cuts(cost, budget.SHARE) for row, cost in zip(rows, cuts, strict=True)]
        tail_mean = upload(torch.tensor(keeps), device)
        self._announce(rows, groups)
        step = self._score(rows, groups, candidates)
        if any(row.plan is not None for row in rows):
            tables: dict[str, Tensor] = {}
            self._plan(rows, groups, choice.host, torch.tensor(keeps), tables)
            step += [planned(name, values, candidates.logprobs) for name, values in tables.items()]
        bonus = self._bonus(rows, step, candidates)
        traced = any(row.params.trace and not row.untraced for row in rows)
        outcome = Outcome.read(candidates, step, bonus, tail_mean, traced=traced)
        self._note_faults(rows, step, outcome.finite)
        drafts.pass_on_faults(rows)
        spent, kept = outcome.kl, []
        for r, row in enumerate(rows):
            single = len(groups[r]) == 1
            if row.plan is not None and row.plan.leaves_base(spent[r], single, outcome.steers[r]):
                spent[r] = 0.0
            elif row.fault is None:
                kept.append(r)
        made = None
        if len(kept) == len(rows):
            made = fuse_(logits, index, candidates, bonus, tail_mean)
        elif kept:
            some = upload(torch.tensor(kept), device)
            places = [index[r] for r in kept]
            made = fuse_(logits, places, candidates.rows(some), bonus[some], tail_mean[some])
        if made is not None:
            done.append(made)
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


def _ended(logits: Tensor, index: int, row: Row) -> list[Fused]:
    """Allow only the stop token, so that the request ends now; its record has the reason."""
    stop = row.stop_token
    if stop is None or not torch.isfinite(logits[index, stop]):
        return []
    value = logits[index, stop].clone()
    logits[index] = -torch.inf
    logits[index, stop] = value
    tokens = torch.tensor([[stop]], device=logits.device)
    return [Fused([index], tokens, value.view(1, 1), value.new_full((1,), -torch.inf))]


def _places(members: Sequence[int], groups: Sequence[Ids]) -> tuple[Ids, Ids]:
    """Row, and index in the row, of each packed candidate, each [Σ candidates] int64."""
    sizes = [len(group) for group in groups]
    return np.repeat(members, sizes), np.concatenate([np.arange(size) for size in sizes])


def _unscored(groups: Sequence[Ids]) -> Tensor:
    return torch.full((len(groups), max(map(len, groups))), torch.nan)
