"""Records of guided requests, kept until they are fetched, within a memory bound.

Above the bound, the oldest are dropped: first traces, which are large, then whole records.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor

from trimtab import parts
from trimtab.registry import Registry
from trimtab.rows import Row, Step, StepPlan
from trimtab.scoring.pool import Ids

ScoreRows: TypeAlias = Callable[[str, Sequence[Row], Sequence[Ids]], Tensor]
ReadUtility: TypeAlias = Callable[[str, Sequence[Row], Sequence[Ids]], tuple[Tensor, Tensor]]

MAX_RECORDS = 4096
MAX_BYTES = 512 * 2**20
"""Estimated bytes of all records together."""
STEP_BYTES = 300
"""Bytes of a step without a trace: its objects, and its place in its row."""
NUMBER_BYTES = 32
"""Bytes of a number in a list, with the list's reference to it."""


def size(step: Step) -> int:
    """Estimated bytes of a step."""
    own = NUMBER_BYTES * len(step.parts)
    if step.trace is None:
        return STEP_BYTES + own
    lists = 3 + len(step.trace["scores"])  # tokens, two log-probabilities, scores of each scorer
    numbers = lists * len(step.trace["candidates"]) + 2 * len(step.trace["tail"])
    return STEP_BYTES + own + 100 * (lists + 2) + NUMBER_BYTES * numbers


class Records:
    """The rows of each request whose record will be fetched, by record key."""

    def __init__(
        self,
        registry: Registry,
        score_rows: Callable[[], ScoreRows | None],
        catch_up: Callable[[], Callable[[], None] | None],
        read_utility: Callable[[], ReadUtility | None] = lambda: None,
    ) -> None:
        """A guide's.

        score_rows: a weak reference to Guide.score_rows, for the scores of whole sequences.
        catch_up: one to Guide.catch_up, before anything is reported.
        read_utility: one to Guide.read_utility, for those with a utility.
        """
        self.registry = registry
        self.score_rows = score_rows
        self.read_utility = read_utility
        self.catch_up = catch_up
        self.rows: OrderedDict[str, list[Row]] = OrderedDict()
        self.bytes: dict[str, int] = {}
        self.total = 0

    def __iter__(self) -> Iterator[str]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def keep(self, row: Row) -> None:
        """Keep a row; after a preemption, the new row takes over the earlier row's steps.

        Rows after draft tokens are kept with the row of their text.
        """
        key = row.record_key
        if key is None or row.earlier is not None:
            return
        rows = self.rows.setdefault(key, [])
        if any(kept is row for kept in rows):
            return
        if len(row.prefix) > row.prompt_length:
            earlier = _match(rows, row.prefix)
            if earlier is not None:
                row.steps.update((at, s) for at, s in earlier.steps.items() if at < len(row.prefix))
                row.fault, row.untraced = earlier.fault, earlier.untraced
                row.seconds = dict(earlier.seconds)
        rows.append(row)
        self._count(key, STEP_BYTES + sum(map(size, row.steps.values())))

    def add(self, row: Row, position: int, step: Step) -> None:
        """Record a step of a row."""
        row.steps[position] = step
        key = row.record_key
        if key is not None and key in self.rows:
            self._count(key, size(step))

    def drop(self, row: Row, position: int) -> None:
        """Drop a row's step after a draft token that the engine has not accepted."""
        step = row.steps.pop(position, None)
        if step is not None and row.record_key in self.bytes:
            self._count(row.record_key, -size(step))

    def of(self, key: str) -> list[Row]:
        """The rows of a request; empty if it is unknown."""
        return self.rows.get(key, [])

    def pop(self, key: str) -> list[Row]:
        """Remove and return the rows of a request."""
        self.total -= self.bytes.pop(key, 0)
        return self.rows.pop(key, [])

    def clear(self) -> None:
        """Drop all records."""
        for key in list(self):
            self.pop(key)

    def _count(self, key: str, more: int) -> None:
        self.bytes[key] = self.bytes.get(key, 0) + more
        self.total += more
        while len(self) > MAX_RECORDS:
            self.pop(next(iter(self)))
        if self.total > MAX_BYTES:
            self._forget()

    def _forget(self) -> None:
        for key in list(self):
            if self.total <= MAX_BYTES:
                return
            if any(row.params.trace and not row.untraced for row in self.rows[key]):
                self._strip(key)
        while self.total > MAX_BYTES and self.rows:
            for row in self.pop(next(iter(self))):
                row.record_key = None  # so that it is not kept again

    def _strip(self, key: str) -> None:
        """Remove the traces of a request permanently."""
        left = 0
        for row in self.rows[key]:
            for one in (row, *row.drafted):
                one.untraced = True
            for at, step in row.steps.items():  # in place: rows after draft tokens share them
                row.steps[at] = replace(step, trace=None)
            left += STEP_BYTES * (1 + len(row.steps))
        self.total += left - self.bytes[key]
        self.bytes[key] = left

    def report(
        self,
        record_key: str,
        prompt: Sequence[int],
        outputs: Sequence[Sequence[int]],
        done: bool,
        final: bool = True,
        timed: bool = False,
    ) -> list[dict[str, Any] | None]:
        """The records of finished sequences, looked up by their tokens; None where there is none.

        A record is a pure function of its tokens, so two equal sequences share one.
        final: whether to include the scores of whole sequences, often a forward each.
        timed: whether to include the seconds of the calls into each scorer, `scorer_seconds`, which
            differ from run to run.
        """
        self._note_last_step()
        rows = self.pop(record_key) if done else self.of(record_key)
        sequences = [np.array([*prompt, *output], dtype=np.int64) for output in outputs]
        matches = [_match(rows, sequence) for sequence in sequences]
        reports = [
            self._report(row, s, len(prompt), final) if row else None
            for row, s in zip(matches, sequences, strict=True)
        ]
        for row, report in zip(matches, reports, strict=True):
            if timed and row is not None and report is not None:
                report["scorer_seconds"] = dict(row.seconds)
        return reports

    def steps(
        self,
        record_key: str,
        prompt: Sequence[int],
        outputs: Sequence[Sequence[int]],
        starts: Sequence[int],
    ) -> list[list[dict[str, Any]] | None]:
        """The traces of sequences that grow, each from a position of its output on.

        None where there is none: no trace was requested, or it was dropped to save memory.
        """
        self._note_last_step()
        rows = self.of(record_key)
        traces = []
        for output, start in zip(outputs, starts, strict=True):
            sequence = np.array([*prompt, *output], dtype=np.int64)
            row = _match(rows, sequence)
            wanted = row is not None and row.params.trace
            at = len(prompt)
            traces.append(_trace(row, sequence, at, at + start) if row and wanted else None)
        return traces

    def _note_last_step(self) -> None:
        """Let the guide note what its last step did."""
        catch_up = self.catch_up()
        if catch_up is not None:
            catch_up()

    def _report(self, row: Row, sequence: Ids, prompt_length: int, final: bool) -> dict[str, Any]:
        steps = {p: s for p, s in row.steps.items() if prompt_length <= p < len(sequence)}
        known = [step.plan for _, step in sorted(steps.items()) if step.plan is not None]
        plans = [plan for plan in known if plan.fields]
        last = replace(row, plan=next(reversed(plans or known), None))
        scored = final and len(sequence) > prompt_length
        scores, utilities = self._final_scores(last, sequence) if scored else ({}, {})
        report: dict[str, Any] = {
            "kl": sum(step.kl for step in steps.values()),
            "kl_tail": sum(step.kl_tail for step in steps.values()),
            "scores": scores,
            "steps": len(steps),
            "scored_steps": sum(step.scored > 0 for step in steps.values()),
            "scored_tokens": sum(step.scored for step in steps.values()),
            "error": None,
        }
        if last.fault is not None:
            report["error"] = last.fault.fields
        if utilities:
            report["utilities"] = utilities
        report |= _strengths(plans)
        if row.params.said or row.params.planned:
            report["kl_parts"] = parts.added([step.parts for step in steps.values()])
        if spread := self._spread(last, sequence, scores):
            report["spread"] = spread
        lost = {name: self._shortened(row, name) for name in row.weights}
        if any(lost.values()):
            report["shortened"] = {name: tokens for name, tokens in lost.items() if tokens}
        if row.params.trace:
            report["trace"] = _trace(row, sequence, prompt_length, prompt_length)
        return report

    def _shortened(self, row: Row, name: str) -> int:
        scorer = self.registry.scorer_of(row, name)
        return self.registry.calls.run(name, scorer, partial(scorer.shortened, row.key), 0)

    def _final_scores(self, row: Row, sequence: Ids) -> tuple[dict[str, float], dict[str, float]]:
        """Each scorer's score of the whole sequence; and the values of utilities.

        Where there is a utility, the score is the mean return, which the utility is one of.
        """
        scores: dict[str, float] = {}
        utilities: dict[str, float] = {}
        for name in row.params.scorers or {}:
            on_utility = name in row.weights and row.params.utility_of(name) != "mean"
            known = row.scored.of(name, sequence) if row.scored and not on_utility else None
            if known is not None:
                scores[name] = known
                continue
            if row.fault is not None and row.fault.scorer == name:
                continue  # it would fail again
            last = replace(row, prefix=sequence[:-1], fault=None)
            value = 0.0
            if on_utility:
                read_utility = self.read_utility()
                assert read_utility is not None, "the guide reads its own records"
                mean, of_utility = read_utility(name, [last], [sequence[-1:]])
                score, value = float(mean[0]), float(of_utility[0])
            else:
                score_rows = self.score_rows()
                assert score_rows is not None, "the guide reads its own records"
                score = float(score_rows(name, [last], [sequence[-1:]])[0])
            if last.fault is None:
                scores[name] = score
                utilities |= {name: value} if on_utility else {}
            elif row.fault is None:
                row.fault = last.fault
        return scores, utilities

    def _spread(self, row: Row, sequence: Ids, scores: Mapping[str, float]) -> dict[str, float]:
        """The spread of the heads at the whole sequence, of each ensemble with a caution.

        (mean − score) / λ, as the score of such a request is mean − λ·spread.
        """
        spread = {}
        plain = row.params.model_copy(update={"caution": None})
        for name, size in (row.params.caution or {}).items():
            if size == 0 or name not in scores:
                continue
            last = replace(row, params=plain, prefix=sequence[:-1], fault=None)
            score_rows = self.score_rows()
            assert score_rows is not None, "the guide reads its own records"
            mean = float(score_rows(name, [last], [sequence[-1:]])[0])
            if last.fault is None:
                spread[name] = max(mean - scores[name], 0.0) / size
        return spread


def _match(rows: Sequence[Row], sequence: Ids) -> Row | None:
    """The first row that may have produced `sequence`."""
    return next((match for row in rows if (match := row.match(sequence)) is not None), None)


def _trace(row: Row, sequence: Ids, prompt_length: int, start: int) -> list[dict[str, Any]] | None:
    """What guidance did to `sequence[start:]`, by step; None if it was dropped to save memory."""
    if row.untraced:
        return None
    return [
        {
            "position": p - prompt_length,
            "token": int(sequence[p]),
            "kl": row.steps[p].kl,
            **(row.steps[p].trace or {}),
        }
        for p in range(start, len(sequence))
        if p in row.steps
    ]


def spell(trace: Iterable[dict[str, Any]] | None, text: Callable[[int], str]) -> None:
    """Add the texts of the tokens that a trace lists: `texts` and `tail_texts`."""
    for step in trace or ():
        if "candidates" in step:
            step["texts"] = [text(token) for token in step["candidates"]]
            step["tail_texts"] = [text(token) for token in step["tail"]]


def _strengths(plans: Sequence[StepPlan]) -> dict[str, Any]:
    """Mean and last of the strengths that were set at each scored step."""
    strengths: dict[str, Any] = {}
    if betas := [plan.beta for plan in plans if plan.beta is not None]:
        strengths["beta"] = {"mean": sum(betas) / len(betas), "last": betas[-1]}
    if duals := [plan.duals for plan in plans if plan.duals]:
        strengths["duals"] = {
            name: {"mean": sum(d[name] for d in duals) / len(duals), "last": duals[-1][name]}
            for name in duals[-1]
        }
    return strengths
