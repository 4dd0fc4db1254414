"""The drawn prefixes of a run whose scorer reads texts.

On average, the mean loss of the rows is the objective's own, over all prefixes:

    bradley-terry        for each pair, m different lengths of 1 .. max(|y_w|, |y_l|); the side that
                         has ended keeps its whole text
    bradley-terry-full   each pair once, whole
    td-lambda, td-0,     m·N of all prefixes of all N answers, so that an answer has as many rows as
    cd-fudge, fudge      its length suggests
    rad                  m prefixes of each answer, of t tokens with probability t / Σ t

With as many rows for a short answer as for a long one, a value would lean towards answers that end
soon (see objectives/rad.py).

The λ-return is a mean of later values. One of them is drawn for each row, k tokens later with

    P(k) = (1 − λ)·λ^{k−1},   G = V(x, y^{1:t+k}),   or the reward R if the answer has ended by then

whose mean over k is the λ-return, so the gradient is that of td-lambda on average. It costs a
second text. Lengths are drawn once, by the run's seed: all passes see the same rows, as in PARGS.
"""

import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from trimtab_models.objectives import Objective
from trimtab_models.objectives.base import completions
from trimtab_models.objectives.bradley_terry import BradleyTerry, FullBradleyTerry
from trimtab_models.objectives.fudge import Fudge
from trimtab_models.objectives.rad import Rad
from trimtab_models.objectives.td_lambda import TdLambda
from trimtab_models.rows import Pair, Rollout

log = logging.getLogger(__name__)


class Row(NamedTuple):
    """A prefix of an item's answer, or of both of its answers.

    length: tokens of the prefix; a shorter answer is whole. later: tokens of the later prefix whose
    value is the target; None if the target is the item's own reward or order.
    """

    item: Rollout | Pair
    length: int
    later: int | None = None


def reads_whole(objective: Objective) -> bool:
    """Whether an objective compares whole answers alone, so that nothing is drawn."""
    return isinstance(objective, FullBradleyTerry) and not isinstance(objective, BradleyTerry)


def can_draw(objective: Objective) -> bool:
    """Whether an objective can be trained on drawn prefixes."""
    return isinstance(objective, BradleyTerry | FullBradleyTerry | Fudge | Rad | TdLambda)


def draw(
    objective: Objective, items: Sequence[Rollout | Pair], rows: float, seed: int
) -> list[Row]:
    """The rows of a run; see the module.

    Args:
        objective: one that `can_draw`.
        items: its data.
        rows: m, the mean number of rows of an item.
        seed: of the draws.

    Raises:
        ValueError: the data has labels of its own for some prefixes.
    """
    if not items:
        return []
    for name in ("odds", "step_rewards"):
        if any(getattr(item, name, ()) for item in items):
            raise ValueError(
                f"the data has {name.replace('_', ' ')}, which a scorer of texts cannot learn; "
                "leave them out, or train a causal network with the base's tokenizer."
            )
    rng = np.random.default_rng(seed)
    lengths = np.array([max(len(side.completion) for side in completions(one)) for one in items])
    if reads_whole(objective):
        return [Row(item, int(n)) for item, n in zip(items, lengths, strict=True)]
    if isinstance(objective, BradleyTerry | Rad):
        counts = np.floor(rows + rng.random(len(items))).astype(int)  # of mean `rows`
        weighted = isinstance(objective, Rad)
        return [
            Row(item, t)
            for item, n, m in zip(items, lengths.tolist(), counts.tolist(), strict=True)
            for t in (_weighted(n, m, rng) if weighted else _different(n, m, rng))
        ]
    decay = objective.decay if isinstance(objective, TdLambda) else 1.0
    total = int(lengths.sum())
    number = min(total, round(rows * len(items)))
    chosen = np.sort(rng.choice(total, size=number, replace=False))
    ends = lengths.cumsum()
    at = np.searchsorted(ends, chosen, side="right")  # the item of each
    return [
        Row(items[i], t, _later(t, len(items[i].completion), decay, rng))
        for i, t in zip(at.tolist(), (chosen - (ends - lengths)[at] + 1).tolist(), strict=True)
    ]


def some(items: Sequence[Rollout | Pair], most: int) -> Sequence[Rollout | Pair]:
    """The first items that have at most `most` prefixes together; at least one item."""
    total = 0
    for n, item in enumerate(items):
        total += sum(len(side.completion) for side in completions(item))
        if total > most and n:
            log.warning("the report reads %d of %d items: %d prefixes.", n, len(items), most)
            return items[:n]
    return items


def _different(length: int, count: int, rng: np.random.Generator) -> list[int]:
    drawn = rng.choice(length, size=min(count, length), replace=False) + 1
    return sorted(drawn.tolist())


def _weighted(length: int, count: int, rng: np.random.Generator) -> list[int]:
    places = np.arange(1, length + 1)
    return sorted(rng.choice(places, size=count, p=places / places.sum()).tolist())


def _later(t: int, length: int, decay: float, rng: np.random.Generator) -> int | None:
    """The tokens of the prefix that G is read from; None if G is the reward."""
    if decay == 1:
        return None
    later = t + int(rng.geometric(1 - decay))
    return later if later < length else None
