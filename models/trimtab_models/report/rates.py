"""The figures by which the learning rates of a scorer are compared, on held-out data.

    value MSE         mean (V − m)² of half-completed answers      values       VAS, appendix C.1
    margin            mean implicit reward of y_w less that of y_l  dpo          VAS, appendix C.3
    accuracy          share of prefixes that are classified right   fudge        VAS, appendix C.4
    validation loss   the objective itself                          all others

VAS: Han et al., "Value Augmented Sampling", arXiv 2405.06639.
"""

from collections.abc import Sequence
from typing import Any, Literal, Self, TypeAlias

import numpy as np

from trimtab_models.info import ScorerInfo
from trimtab_models.rows import Rollout
from trimtab_models.scoring import prefix_scores
from trimtab_models.validation.estimates import Figures

By: TypeAlias = Literal["validation loss", "value MSE", "margin", "accuracy"]
HIGHEST = ("margin", "accuracy")
"""The highest of these is the best; of the others the lowest."""


class Rates(Figures):
    """How one of several learning rates was chosen."""

    by: By
    figures: dict[float, float]  # of each rate
    chosen: float

    @classmethod
    def best(cls, by: By, figures: dict[float, float]) -> Self:
        """The choice by these figures; of equal ones the first."""
        best = max if by in HIGHEST else min
        return cls(by=by, figures=figures, chosen=best(figures, key=figures.__getitem__))

    def __str__(self) -> str:
        tried = ", ".join(f"{rate:g}: {figure:.4f}" for rate, figure in self.figures.items())
        where = " of half-completed answers" if self.by == "value MSE" else ""
        return f"{self.chosen:g}, by the {self.by}{where} ({tried})"


def value_mse(
    model: Any, info: ScorerInfo, prefixes: Sequence[Rollout], pad_id: int, **options: Any
) -> float:
    """Mean (V − m)² of `half_completed` prefixes, m the mean return of each.

    Arguments as for `prefix_scores`.
    """
    scores = prefix_scores(model, info, prefixes, pad_id, **options)
    errors = [float(s[-1]) - prefix.label for s, prefix in zip(scores, prefixes, strict=True)]
    return sum(error**2 for error in errors) / len(errors)


def accuracy(
    model: Any, info: ScorerInfo, answers: Sequence[Rollout], pad_id: int, **options: Any
) -> float:
    """Share of all prefixes for which P(attribute) > ½ holds if the answer has the attribute.

    The scores are log P; the label of an answer is 1 if it has the attribute, else 0. Other
    arguments as for `prefix_scores`.
    """
    scores = prefix_scores(model, info, answers, pad_id, **options)
    right = [
        (s.numpy() > np.log(0.5)) == (answer.label > 0.5)
        for s, answer in zip(scores, answers, strict=True)
    ]
    return float(np.concatenate(right).mean())
