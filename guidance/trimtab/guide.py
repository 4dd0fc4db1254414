"""The guide: one step of guidance for a batch of rows, on any engine.

    candidates of each row → scores of each scorer → bonus → fused logits, KL, records

Nothing is written to the logits before all of it is known, and a scorer that fails takes
its own rows out, never the step.
"""

import logging
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trimtab.cache import Ids
from trimtab.candidates import select
from trimtab.errors import TrimtabError
from trimtab.fusion import divergence, fuse_
from trimtab.rows import Fault, Row, Scored, Step
from trimtab.scorers.base import Scorer

logger = logging.getLogger(__name__)

MAX_RECORDS = 4096
"""Records that nobody fetched are forgotten, the oldest first."""


class Guide:
    """Scorers by name, and what they do to logits."""

    def __init__(self, scorers: Mapping[str, Scorer]) -> None:
        self.scorers = dict(scorers)
        self.faults: Counter[str] = Counter()
        self.last_error: dict[str, str] = {}
        self.records: OrderedDict[str, list[Row]] = OrderedDict()

    def step(self, logits: Tensor, rows: Sequence[tuple[int, Row]]) -> None:
        """Guide one decode step, in place.

        logits: [batch, vocab] float32; rows: (index into logits, row with its present prefix).
        """
        for _, row in rows:
            self._keep(row)
        active = [(i, row) for i, row in rows if row.params.beta != 0 and row.fault is None]
        if active:
            self._step(logits, active)
        for index, row in rows:
            if row.fault is not None and row.params.on_error == "fail":
                _end(logits[index], row)

    def _step(self, logits: Tensor, active: Sequence[tuple[int, Row]]) -> None:
        device = logits.device
        rows = [row for _, row in active]
        places = [i for i, _ in active]
        index = torch.tensor(places, device=device)
        # The usual batch is guided as a whole: then nothing the size of the vocabulary is copied.
        whole = places == list(range(len(logits)))
        base = logits if whole else logits[index]  # [rows, vocab]
        k = torch.tensor([row.params.k for row in rows], device=device)
        mass = torch.tensor([row.params.mass for row in rows], device=device)
        tail_mean = torch.tensor([row.params.tail == "mean" for row in rows], device=device)
        candidates = select(base, k, mass)
        counts = candidates.counts.tolist()
        tokens = candidates.tokens.cpu().numpy()
        scores = self._score(rows, [tokens[r, :n] for r, n in enumerate(counts)])
        bonus = self._bonus(rows, counts, scores, tokens.shape[1]).to(device)
        kl, log_z = divergence(candidates, bonus, tail_mean)
        healthy = [r for r, row in enumerate(rows) if row.fault is None]
        if len(healthy) == len(rows):
            fuse_(logits, index, candidates, bonus, tail_mean)
        elif healthy:
            kept = torch.tensor(healthy, device=device)
            fuse_(logits, index[kept], candidates.rows(kept), bonus[kept], tail_mean[kept])
        for r, (row, row_kl) in enumerate(zip(rows, kl.tolist(), strict=True)):
            if row.fault is None and row.record_key is not None:
                n, trace = counts[r], None
                chosen = tokens[r, :n].tolist()
                given = {s: v[r, :n].tolist() for s, v in scores.items() if v[r, 0].isfinite()}
                row.scored = Scored(len(row.prefix), chosen, given)
                if row.params.trace:
                    logprobs = candidates.logprobs[r, :n]
                    trace = {
                        "candidates": chosen,
                        "logprobs": logprobs.tolist(),
                        "scores": given,
                        "guided_logprobs": (logprobs + bonus[r, :n] - log_z[r]).tolist(),
                    }
                row.steps[len(row.prefix)] = Step(row_kl, n if n > 1 else 0, trace)

    def _score(self, rows: Sequence[Row], groups: Sequence[Ids]) -> dict[str, Tensor]:
        """Scores by scorer, [rows, k] float32 on the host, NaN where none were asked for.

        A row with a single candidate needs no scores.
        """
        scores = {}
        width = max(len(group) for group in groups)
        for name in dict.fromkeys(name for row in rows for name in row.weights):
            members = [
                r
                for r, row in enumerate(rows)
                if name in row.weights and len(groups[r]) > 1 and row.fault is None
            ]
            if members:
                sizes = [len(groups[r]) for r in members]
                flat = self.score_rows(
                    name, [rows[r] for r in members], [groups[r] for r in members]
                )
                padded = torch.full((len(rows), width), torch.nan)
                at = np.repeat(members, sizes), np.concatenate([np.arange(n) for n in sizes])
                padded[at] = flat
                scores[name] = padded
        return scores

    def score_rows(self, name: str, rows: Sequence[Row], groups: Sequence[Ids]) -> Tensor:
        """One scorer's scores, [Σ candidates] on the host; rows it fails for are marked."""
        sizes = [len(group) for group in groups]
        try:
            flat = self.scorers[name].score(
                [row.key for row in rows],
                [row.prefix for row in rows],
                groups,
                [self._strength(row, name) for row in rows],
            )
            if flat.shape != (sum(sizes),):
                raise TrimtabError(
                    f"the scorer returned shape {tuple(flat.shape)}, expected ({sum(sizes)},)"
                )
            flat = flat.detach().float().cpu()
        except Exception as error:
            if len(rows) > 1:  # find out whose fault it is
                alone = zip(rows, groups, strict=True)
                return torch.cat([self.score_rows(name, [row], [group]) for row, group in alone])
            logger.warning("scorer %s failed", name, exc_info=error)
            self.fail(rows[0], name, f"{type(error).__name__} while scoring")
            return torch.zeros(sum(sizes))
        if not torch.isfinite(flat).all():
            for row, result in zip(rows, flat.split(sizes), strict=True):
                if not torch.isfinite(result).all():
                    logger.warning("scorer %s returned a score that is not finite", name)
                    self.fail(row, name, "returned a score that is not finite")
        return flat

    def _strength(self, row: Row, name: str) -> float:
        """What multiplies a scorer's scores: β·w, over its deviation if they are normalised."""
        strength = row.params.beta * (row.params.scorers or {})[name]
        return strength / self.scorers[name].info.deviation if row.params.normalize else strength

    def _bonus(
        self, rows: Sequence[Row], counts: Sequence[int], scores: Mapping[str, Tensor], width: int
    ) -> Tensor:
        """β·Σ_i w_i·s_i, [rows, k] float32; 0 for rows with one candidate or a fault."""
        bonus = torch.zeros(len(rows), width)
        for name, values in scores.items():
            info = self.scorers[name].info
            scale = torch.zeros(len(rows))
            shift = torch.zeros(len(rows))
            for r, row in enumerate(rows):
                if counts[r] > 1 and name in row.weights:
                    scale[r] = self._strength(row, name)
                    shift[r] = info.mean if row.params.normalize else 0.0
            used = torch.where(scale[:, None] != 0, values.nan_to_num(), 0.0)
            bonus[:, : values.shape[1]] += scale[:, None] * (used - shift[:, None])
        for r in (~torch.isfinite(bonus).all(-1)).nonzero()[:, 0].tolist():
            if rows[r].fault is None:
                self.fail(rows[r], next(iter(rows[r].weights)), "gave a score too large to use")
        for r, row in enumerate(rows):
            if row.fault is not None:
                bonus[r] = 0
        return bonus

    def fail(self, row: Row, scorer: str, message: str) -> None:
        """Take a row out of guidance, for good."""
        row.fault = Fault(scorer, message)
        self.faults[scorer] += 1
        self.last_error[scorer] = message
        if scorer in self.scorers:
            self.scorers[scorer].forget(row.key)

    def _keep(self, row: Row) -> None:
        """Keep a row's record until it is fetched; a row that was preempted finds its own."""
        if row.record_key is None:
            return
        rows = self.records.setdefault(row.record_key, [])
        if any(kept is row for kept in rows):
            return
        if len(row.prefix) > row.prompt_length:
            earlier = next((kept for kept in rows if kept.follows(row.prefix)), None)
            if earlier is not None:
                row.steps, row.fault = dict(earlier.steps), earlier.fault
        rows.append(row)
        while len(self.records) > MAX_RECORDS:
            self.records.popitem(last=False)

    def report(
        self, record_key: str, prompt: Sequence[int], outputs: Sequence[Sequence[int]], done: bool
    ) -> list[dict[str, Any] | None]:
        """The records of finished sequences, found by their tokens; None where there is none.

        A record is a pure function of its tokens, so two equal sequences share theirs.
        """
        rows = self.records.pop(record_key, []) if done else self.records.get(record_key, [])
        sequences = [np.array([*prompt, *output], dtype=np.int64) for output in outputs]
        found = [next((r for r in rows if r.follows(s)), None) for s in sequences]
        return [
            self._report(row, s, len(prompt)) if row else None
            for row, s in zip(found, sequences, strict=True)
        ]

    def _report(self, row: Row, sequence: Ids, prompt_length: int) -> dict[str, Any]:
        steps = {p: s for p, s in row.steps.items() if prompt_length <= p < len(sequence)}
        scores = self._final_scores(row, sequence) if len(sequence) > prompt_length else {}
        report: dict[str, Any] = {
            "kl": sum(step.kl for step in steps.values()),
            "scores": scores,
            "steps": len(steps),
            "scored_steps": sum(step.scored > 0 for step in steps.values()),
            "scored_tokens": sum(step.scored for step in steps.values()),
            "error": None,
        }
        if row.fault is not None:
            report["error"] = {"scorer": row.fault.scorer, "message": row.fault.message}
        if row.params.trace:
            report["trace"] = [
                {"position": p - prompt_length, "token": int(sequence[p]), **(step.trace or {})}
                for p, step in sorted(steps.items())
            ]
        return report

    def _final_scores(self, row: Row, sequence: Ids) -> dict[str, float]:
        """What each scorer thinks of the whole sequence."""
        scores = {}
        for name in row.params.scorers or {}:
            known = row.scored.of(name, sequence) if row.scored else None
            if known is not None:
                scores[name] = known
                continue
            last = replace(row, prefix=sequence[:-1], fault=None)
            score = float(self.score_rows(name, [last], [sequence[-1:]])[0])
            if last.fault is None:
                scores[name] = score
            elif row.fault is None:
                row.fault = last.fault
        return scores


def _end(logits: Tensor, row: Row) -> None:
    """Leave only the stop token, so that the request ends now; its record tells why."""
    if row.stop_token is not None and torch.isfinite(logits[row.stop_token]):
        value = logits[row.stop_token].clone()
        logits.fill_(-torch.inf)
        logits[row.stop_token] = value
