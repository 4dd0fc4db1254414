"""What a step did to each row, on the host: read with one wait for the device."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from trimtab.candidates import Candidates
from trimtab.fusion import divergence
from trimtab.scores import Scores
from trimtab_models.transfers import to_host

TRACED = 32
"""Most likely tokens of a step in a trace, if k is "all"."""
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
        """Fields of a row's trace, which lists `count` tokens; guided: whether it was guided."""
        after = self.guided if guided else self.logprobs
        possible = (self.logprobs[row] > -torch.inf).sum()  # they fall; −inf is banned
        tail = slice(count, min(count + TAIL, int(possible)))
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
class Outcome:
    """What a step did, by row."""

    kl: list[float]  # nats
    finite: list[bool]  # whether the bonus, and so every score, is finite
    steers: Tensor  # [rows] bool, whether any candidate has a bonus
    step: list[Scores]  # on the host; none if they are a vocabulary's on a device
    shown: Shown | None

    @classmethod
    def read(
        cls,
        candidates: Candidates,
        step: Sequence[Scores],
        bonus: Tensor,
        tail_mean: Tensor,
        *,
        traced: bool,
    ) -> "Outcome":
        """Of a step with a bonus, [rows, k]; traced: whether any row has a trace."""
        kl, log_z = divergence(candidates, bonus, tail_mean)
        kept = [] if candidates.whole and kl.is_cuda else list(step)
        first = [kl, bonus.isfinite().all(-1), bonus.any(-1), *(scores.table for scores in kept)]
        kl, finite, steers, *rest = to_host(
            [*first, *(_shown(candidates, step, bonus, log_z) if traced else ())]
        )
        shown = None
        if traced:
            tokens, logprobs, guided, *tables = rest[len(kept) :]
            shown = Shown(tokens, logprobs, guided, _with(step, tables))
        return cls(kl.tolist(), finite.tolist(), steers, _with(kept, rest[: len(kept)]), shown)


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
