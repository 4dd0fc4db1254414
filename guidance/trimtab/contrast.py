"""The scorers of principles: what a text before the prompt changes in the base's own logits.

    s_c(v) = log π0(v | c, x) − log π0(v | x)

Both come from logits of the same step: the row's own, and those of the row beside it that has the
principle in its prompt. So no network runs, and nothing is kept from step to step.
"""

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from trimtab.principles import MAX_PRINCIPLES, NAME
from trimtab.rows import Row
from trimtab.scorers.base import Scorer, gather_candidates
from trimtab.scoring.calls import ScorerFailed
from trimtab.scoring.pool import Ids
from trimtab.scoring.text import Prompt
from trimtab_models.checkpoint import ScorerInfo
from trimtab_models.transfers import upload

log = logging.getLogger(__name__)
ABSENT = "has no row in this step: the engine could not run it beside the request"


class Contrast(Scorer):
    """The scores of one of each row's principles, in the step that `show` has shown."""

    family = "principle"
    whole = True

    def __init__(self, name: str) -> None:
        super().__init__(ScorerInfo())
        self.name = name
        self._logits: Tensor | None = None  # [batch, vocab] of the step, not yet fused
        self._places: dict[int, tuple[int, int]] = {}  # own row, row beside it; by row key

    @property
    def keeps_time(self) -> bool:
        """True: it is one pass over the vocabulary."""
        return True

    def see(self, logits: Tensor | None, rows: Sequence[tuple[int, Row]]) -> None:
        """Take the logits of a step, in which guidance has changed nothing yet."""
        self._logits, self._places = logits, {}
        for index, row in rows:
            names = list(row.params.said)
            if self.name in names and len(row.beside) == len(names):
                self._places[row.key] = index, row.beside[names.index(self.name)]

    @torch.inference_mode()
    def score(
        self,
        keys: Sequence[int],
        prefixes: Sequence[Ids],
        candidates: Sequence[Ids],
        strengths: Sequence[float],
        prompts: Sequence[Prompt] = (),
    ) -> Tensor:
        """See Scorer.score.

        Tokens that the row may not take (−inf) have no probability after the principle either: both
        are distributions over the tokens that are left.

        Raises:
            ScorerFailed: the engine did not run a row beside one of these.
        """
        if self._logits is None or not self._places.keys() >= set(keys):
            raise ScorerFailed(ABSENT, retry=True)
        places = upload(torch.tensor([self._places[key] for key in keys]), self._logits.device)
        own, other = self._logits[places.T]  # [rows, vocab] each
        return gather_candidates(difference(own.float(), other.float()), candidates)


def difference(own: Tensor, other: Tensor) -> Tensor:
    """log softmax(other) − log softmax(own) where `own` is finite, else 0: [rows, vocab]."""
    banned = own == -torch.inf
    after = other.masked_fill(banned, -torch.inf).log_softmax(-1)
    return (after - own.log_softmax(-1)).masked_fill(banned, 0.0)


def contrasts() -> dict[str, Scorer]:
    """A scorer for each place of a principle in a request, by name."""
    names = [NAME.format(i) for i in range(1, MAX_PRINCIPLES + 1)]
    return {name: Contrast(name) for name in names}


def show(
    scorers: Mapping[str, Scorer], logits: Tensor | None, rows: Sequence[tuple[int, Row]] = ()
) -> None:
    """Let the scorers of principles see a step's logits, [batch, vocab]; None when it is over."""
    some = [(index, row) for index, row in rows if row.params.said]
    for scorer in scorers.values():
        if isinstance(scorer, Contrast):
            scorer.see(logits if some else None, some)
