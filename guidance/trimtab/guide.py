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

from trimtab import control, drafts
from trimtab.candidates import Candidates, every, select
from trimtab.fusion import divergence, fuse_
from trimtab.records import Records
from trimtab.registry import Registry
from trimtab.rows import Row, RowFault, Step, StepPlan, StepScores, cohorts, members_of
from trimtab.scorers.base import Scorer
from trimtab.scoring.calls import ScorerFailed, checked
from trimtab.scoring.pool import Ids
from trimtab.states import States
from trimtab_models.readout import soft_value

log = logging.getLogger(__name__)

TRACED = 32
"""Most likely tokens of a step in a trace, if k is "all"."""
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
        A row may be followed by those after its draft tokens (drafts.py), in their order.
        """
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
                self._step(logits, cohort)
        for index, row in rows:
            if row.fault is not None and row.params.on_error == "fail":
                _end(logits[index], row)

    def _step(self, logits: Tensor, active: Sequence[tuple[int, Row]]) -> None:
        device = logits.device
        rows = [row for _, row in active]
        places = [i for i, _ in active]
        index = torch.tensor(places, device=device)
        # Usually all rows are guided in order: then no [rows, vocab] tensor is copied.
        whole = places == list(range(len(logits)))
        base = logits if whole else logits[index]  # [rows, vocab]
        candidates = _candidates(base, rows)
        counts = candidates.counts.tolist()
        groups = _groups(rows, candidates, counts)
        cuts = _cuts(rows, candidates)
        for row in rows:
            row.plan = row.next_plan(control.BAND)
        keeps = [not row.cuts(cost, control.SHARE) for row, cost in zip(rows, cuts, strict=True)]
        tail_mean = torch.tensor(keeps, device=device)
        scores = self._score(rows, groups)
        if any(row.plan is not None for row in rows):
            self._plan(rows, groups, candidates, tail_mean, scores)
        bonus = self._bonus(rows, counts, scores, candidates.tokens.shape[1]).to(device)
        kl, log_z = divergence(candidates, bonus, tail_mean)
        spent = kl.tolist()
        kept = []
        for r, row in enumerate(rows):
            if row.plan is not None and row.plan.leaves_base(spent[r], counts[r] == 1, bonus[r]):
                spent[r] = bonus[r] = log_z[r] = 0.0
            elif row.fault is None:
                kept.append(r)
        if len(kept) == len(rows):
            fuse_(logits, index, candidates, bonus, tail_mean)
        elif kept:
            some = torch.tensor(kept, device=device)
            fuse_(logits, index[some], candidates.rows(some), bonus[some], tail_mean[some])
        for r, row in enumerate(rows):
            plan, n, trace = row.plan, counts[r], None
            if row.fault is not None or (row.record_key is None and plan is None):
                continue
            scored = {s: v[r, :n].numpy() for s, v in scores.items() if v[r, 0].isfinite()}
            row.scored = StepScores(len(row.prefix), groups[r], scored)
            if plan is not None and (n == 1 or r not in kept):
                plan.rest = plan.left - spent[r]
                plan.after = {}
            if row.params.trace and not row.untraced:
                at = torch.arange(n, device=device)
                if row.params.k == "all":
                    at = candidates.logprobs[r].topk(min(TRACED, n)).indices
                logprobs = candidates.logprobs[r, at]
                trace = {
                    "candidates": candidates.tokens[r, at].tolist(),
                    "logprobs": logprobs.tolist(),
                    "scores": {s: v[at.cpu().numpy()].tolist() for s, v in scored.items()},
                    "guided_logprobs": (logprobs + bonus[r, at] - log_z[r]).tolist(),
                    **(plan.fields if plan is not None else {}),
                }
            kl_tail = 0.0 if keeps[r] else min(cuts[r], spent[r])
            self.records.add(row, Step(spent[r], n if n > 1 else 0, trace, plan, kl_tail))

    def _score(self, rows: Sequence[Row], groups: Sequence[Ids]) -> dict[str, Tensor]:
        """Scores by scorer, [rows, k] float32 on the host, NaN where none are needed yet.

        A row with a single candidate needs no scores; rows with planned strengths follow in _plan.
        """
        scores = {}
        for name in dict.fromkeys(name for row in rows for name in row.weights):
            members = members_of(name, rows, groups, planned=False)
            if members:
                candidates = [groups[r] for r in members]
                scores[name] = _unscored(groups)
                scores[name][_places(members, candidates)] = self.score_rows(
                    name, [rows[r] for r in members], candidates
                )
        return scores

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

        def read(some: Sequence[Row], candidates: Sequence[Ids]) -> Callable[[], Tensor]:
            strengths = [self._strength(row, name) for row in some]
            keys, prefixes = [row.key for row in some], [row.prefix for row in some]
            prompts = [row.prompt for row in some]
            scorer = self.registry.scorer_of(some[0], name)
            states = self._states(scorer, some)
            return partial(scorer.score, keys, prefixes, candidates, strengths, prompts, **states)

        return self._call(name, rows, groups, read, ())

    def _call(
        self,
        name: str,
        rows: Sequence[Row],
        groups: Sequence[Ids],
        read: Callable[[Sequence[Row], Sequence[Ids]], Callable[[], Tensor]],
        shape: Sequence[int],
        until: float | None = None,
    ) -> Tensor:
        """A scorer's result, [Σ candidates, *shape] on the host; failed rows get a fault."""
        sizes = [len(group) for group in groups]
        scorer = self.registry.scorer_of(rows[0], name)
        if until is None:
            fresh = sum(len(row.prefix) for row in rows if name not in row.read)
            until = self.registry.calls.until(scorer, fresh)
        work = partial(checked, read(rows, groups), (sum(sizes), *shape))
        try:
            flat = self.registry.calls.score(name, scorer, work, until)
        except ScorerFailed as failure:
            if failure.retry and len(rows) > 1:  # retry row by row, within the remaining time
                pairs = zip(rows, groups, strict=True)
                return torch.cat(
                    [self._call(name, [row], [group], read, shape, until) for row, group in pairs]
                )
            if failure.retry:
                log.warning("scorer %s failed: %s", name, failure.message)
                log.debug("scorer %s failed", name, exc_info=failure.__cause__)
            for row in rows:
                self.fail(row, name, failure.message, overrun=failure.overrun)
            return torch.zeros(sum(sizes), *shape)
        for row in rows:
            row.read.add(name)
        if not torch.isfinite(flat).all():
            for row, result in zip(rows, flat.split(sizes), strict=True):
                if not torch.isfinite(result).all():
                    lost = scorer.reads_states and not self.states.of([row]).isfinite().all()
                    reason = LOST if lost else "returned a score that is not finite"
                    log.warning("scorer %s %s", name, reason)
                    self.fail(row, name, reason)
            flat = flat.nan_to_num(0.0, 0.0, 0.0)
        return flat

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
        plan = row.plan or StepPlan()
        if name in plan.duals:
            return plan.duals[name]
        return (row.params.beta if plan.beta is None else plan.beta) * self._weight(row, name)

    def _bonus(
        self, rows: Sequence[Row], counts: Sequence[int], scores: Mapping[str, Tensor], width: int
    ) -> Tensor:
        """β·Σ_i w_i·s_i, [rows, k] float32; 0 for rows with one candidate or a fault."""
        bonus = torch.zeros(len(rows), width)
        for name, values in scores.items():
            # Lists: setting the elements of a tensor one by one takes a hundred times as long.
            scales, shifts = [0.0] * len(rows), [0.0] * len(rows)
            for r, row in enumerate(rows):
                if counts[r] > 1 and row.uses(name):
                    scales[r] = self._strength(row, name)
                    if row.params.normalize:
                        shifts[r] = self.registry.scorer_of(row, name).info.mean
            scale, shift = torch.tensor(scales), torch.tensor(shifts)
            used = torch.where(scale[:, None] != 0, values.nan_to_num(), 0.0)
            bonus[:, : values.shape[1]] += scale[:, None] * (used - shift[:, None])
        for r in (~torch.isfinite(bonus).all(-1)).nonzero()[:, 0].tolist():
            if rows[r].fault is None:
                self.fail(rows[r], next(iter(rows[r].weights)), "gave a score too large to use")
        drafts.pass_on_faults(rows)
        for r, row in enumerate(rows):
            if row.fault is not None:
                bonus[r] = 0
        return bonus

    def fail(self, row: Row, scorer: str, message: str, *, overrun: bool = False) -> None:
        """Remove a row from guidance permanently."""
        row.fault = RowFault(scorer, message, overrun)
        self.registry.note_fault(row, scorer, message)


def _candidates(base: Tensor, rows: Sequence[Row]) -> Candidates:
    """The candidates of a cohort's rows, whose logits are `base`, [rows, vocab]."""
    ks = [row.params.k for row in rows]
    numbers = [k for k in ks if k != "all"]
    if not numbers:
        return every(base)
    mass = torch.tensor([row.params.mass for row in rows], device=base.device)
    return select(base, torch.tensor(numbers, device=base.device), mass)


def _groups(rows: Sequence[Row], candidates: Candidates, counts: Sequence[int]) -> list[Ids]:
    """The candidates of each row; with k = "all" one array for all of them."""
    if rows[0].params.k == "all":
        return [candidates.tokens[0].cpu().numpy()] * len(rows)
    tokens = candidates.tokens.cpu().numpy()
    return [tokens[r, :n] for r, n in enumerate(counts)]


def _cuts(rows: Sequence[Row], candidates: Candidates) -> list[float]:
    """What it would cost each row to cut its tail, in nats; 0 if no row cuts it."""
    if all(row.params.tail != "truncate" for row in rows):
        return [0.0] * len(rows)
    cost: list[float] = (-candidates.mass.log()).tolist()
    return cost


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
