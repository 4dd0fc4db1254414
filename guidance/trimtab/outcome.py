"""What a step did to each row: one packed copy to the host, for which nobody waits."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from trimtab.candidates import Candidates
from trimtab.parts import Shares
from trimtab.rows import Row
from trimtab.scores import Scores
from trimtab.scoring.pool import Ids
from trimtab.verdict import Verdict
from trimtab_models.transfers import ToHost

TRACED = 32
"""Most likely tokens of a step in a trace, if k is "all"."""
LISTED = 256
"""Most candidates of a step in a trace, the most likely ones, so that it does not grow with k."""
TAIL = 8
"""Maximum tokens of the tail in a trace: the most likely ones that are no candidates."""


@dataclass
class Shown:
    """What traces list: the candidates, or the most likely tokens if these are the vocabulary."""

    tokens: Tensor  # [rows, shown] int64; behind a row's candidates, tokens of its tail
    logprobs: Tensor  # [rows, shown] float32
    guided: Tensor  # [rows, shown] float32, log-probabilities with guidance
    step: list[Scores]  # with tables of [names, rows, shown]

    def trace(self, row: int, count: int, guided: bool) -> dict[str, Any]:
        """Fields of a row's trace, which lists `count` tokens; guided: whether it was guided.

        Of more than `LISTED`, it lists as many.
        """
        after = self.guided if guided else self.logprobs
        possible = (self.logprobs[row] > -torch.inf).sum()  # they fall; −inf is banned
        tail = slice(count, min(count + TAIL, int(possible)))
        count = min(count, LISTED)
        return {
            "candidates": self.tokens[row, :count].tolist(),
            "logprobs": self.logprobs[row, :count].tolist(),
            "tail": self.tokens[row, tail].tolist(),
            "tail_logprobs": self.logprobs[row, tail].tolist(),
            "scores": {
                name: values[:count].tolist()
                for scores in self.step
                for name, values in scores.of(row).items()
            },
            "guided_logprobs": after[row, :count].tolist(),
        }


@dataclass
class Seen:
    """What a step did, by row, on the host."""

    kl: list[float]  # nats
    finite: list[bool]  # whether the bonus, and so every score, is finite
    guided: list[bool]
    step: list[Scores]  # none if they are a vocabulary's on a device
    shown: Shown | None
    shares: Shares | None = None  # of the KL, with principles or plans


class Outcome:
    """What a step did, on its way to the host; it is read when it is needed, or has arrived."""

    def __init__(
        self,
        candidates: Candidates,
        step: Sequence[Scores],
        bonus: Tensor,
        kl: Tensor,
        log_z: Tensor,
        verdict: Verdict,
        divided: Shares | None = None,
        *,
        traced: bool,
    ) -> None:
        """Of a step with a bonus, [rows, k]; traced: whether any row has a trace."""
        kept = [] if candidates.whole and kl.is_cuda else list(step)
        tables = [scores.table for scores in kept]
        shown = _shown(candidates, step, bonus, log_z) if traced else []
        self._shares = None if divided is None else replace(divided, table=torch.empty(0))
        of = [] if divided is None else [divided.table]
        self._parts = ToHost([kl, verdict.finite, verdict.guided, *of, *tables, *shown])
        self._kept, self._step = _without(kept), _without(step)

    def read(self) -> Seen:
        """What the step did."""
        kl, finite, guided, *rest = self._parts.read()
        shares = self._shares
        if shares is not None:
            shares, rest = replace(shares, table=rest[0]), rest[1:]
        kept, rest = _with(self._kept, rest[: len(self._kept)]), rest[len(self._kept) :]
        shown = None
        if rest:
            tokens, logprobs, after, *tables = rest
            shown = Shown(tokens, logprobs, after, _with(self._step, tables))
        return Seen(kl.tolist(), finite.tolist(), guided.tolist(), kept, shown, shares)


@dataclass
class Pending:
    """A step that is not yet noted, with what its rows were: they change before it is."""

    rows: Sequence[Row]
    groups: Sequence[Ids]  # candidates of each row
    cuts: Sequence[float]  # nats that cutting the tail has cost each row
    outcome: Outcome

    def __post_init__(self) -> None:
        self.prefixes = [row.prefix for row in self.rows]
        self.plans = [row.plan for row in self.rows]
        self.earlier = [row.earlier for row in self.rows]


def _shown(
    candidates: Candidates, step: Sequence[Scores], bonus: Tensor, log_z: Tensor
) -> list[Tensor]:
    """Tokens, log-probabilities, guided ones, and tables of what traces list; on the device."""
    tokens, logprobs = candidates.tokens, candidates.logprobs
    tables = [scores.table for scores in step]
    if candidates.whole:
        at = logprobs.topk(min(TRACED, logprobs.shape[1])).indices  # [rows, shown]
        tokens, logprobs, bonus = (values.gather(1, at) for values in (tokens, logprobs, bonus))
        tables = [table.gather(2, at.expand(len(table), -1, -1)) for table in tables]
    return [tokens, logprobs, logprobs + bonus - log_z[:, None], *tables]


def _with(step: Sequence[Scores], tables: Sequence[Tensor]) -> list[Scores]:
    return [replace(scores, table=table) for scores, table in zip(step, tables, strict=True)]


def _without(step: Sequence[Scores]) -> list[Scores]:
    """Scores without their tables, which would keep the device's memory."""
    return _with(step, [torch.empty(0)] * len(step))
