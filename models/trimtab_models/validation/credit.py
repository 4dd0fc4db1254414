"""Where credit sits: a few tokens that move the value, or all of them alike.

    |ΔV_t| = |V(x, y^{1:t}) − V(x, y^{1:t−1})|

An answer has a share of Σ_t |ΔV_t| in the tenth of its steps that move most, and Gini's coefficient
of |ΔV_t|: 0 if all steps move alike, near 1 if one step has all.
"""

from collections.abc import Hashable, Sequence

import numpy as np

from trimtab_models.validation.estimates import Figures, Floats
from trimtab_models.validation.intervals import Interval, over_prompts

TOP = 0.1
"""The share of the steps whose part of the change is reported."""
TENTHS = np.arange(1, 11) / 10
FEWEST = 2
"""Steps of an answer that can differ."""


class Credit(Figures):
    """The result of `credit`; intervals of 95 % by the bootstrap over prompts.

    top: the share of the absolute change in the tenth of the steps that move most.
    replicated: the same where one half of the completions names the steps and the other half
    measures them; None without halves. Noise in V lowers `top`; here small moves cancel, which
    raises it.
    even: what `top` would be if all steps moved alike.
    gini: mean of Gini's coefficient over answers.
    curve: the share in the 10, 20, … 100 % of the steps that move most.
    answers, steps: their numbers. still: answers left out because no step moves the value.
    """

    top: Interval
    replicated: Interval | None
    even: float
    gini: Interval
    curve: list[float]
    answers: int
    steps: int
    still: int


def credit(
    moves: Sequence[Floats],
    groups: Sequence[Hashable],
    halves: tuple[Sequence[Floats], Sequence[Floats]] | None = None,
    *,
    seed: int = 0,
) -> Credit | None:
    """How unequally the steps of answers move the value.

    Args:
        moves: for each answer [steps] of ΔV.
        groups: the prompt of each answer.
        halves: the same from two independent halves of the completions, if V is measured.
        seed: of the bootstraps.

    Returns:
        None if no answer has two steps, one of which moves the value.
    """
    used = [i for i, one in enumerate(moves) if len(one) >= FEWEST and np.any(one)]
    if not used:
        return None
    prompts, sizes = [groups[i] for i in used], [np.abs(moves[i]) for i in used]
    ones = np.ones(len(used))

    def mean(values: Sequence[float]) -> Interval:
        return over_prompts(np.array(values), ones, prompts, len(used), seed=seed)

    replicated = None
    if halves is not None:
        parts = np.array([_replicated(halves[0][i], halves[1][i]) for i in used])  # [answers, 2]
        if parts[:, 1].sum() > 0:
            top, total = parts.T
            replicated = over_prompts(top, total, prompts, len(used), seed=seed)
    return Credit(
        top=mean([_top_share(one, TOP) for one in sizes]),
        replicated=replicated,
        even=float(np.mean([_count(len(one), TOP) / len(one) for one in sizes])),
        gini=mean([gini(one) for one in sizes]),
        curve=[float(np.mean([_top_share(one, share) for one in sizes])) for share in TENTHS],
        answers=len(used),
        steps=sum(map(len, sizes)),
        still=sum(len(one) >= FEWEST for one in moves) - len(used),
    )


def gini(sizes: Floats) -> float:
    """Σ_i Σ_j |x_i − x_j| / (2·n²·mean x), for x ≥ 0 that are not all 0."""
    x, n = np.sort(sizes), len(sizes)
    return float((2 * np.arange(1, n + 1) - n - 1) @ x / (n * x.sum()))


def _count(n: int, share: float) -> int:
    """The number of steps in a share of n, at least one."""
    return max(1, round(share * n))


def _top_share(sizes: Floats, share: float) -> float:
    return float(np.sort(sizes)[::-1][: _count(len(sizes), share)].sum() / sizes.sum())


def _replicated(first: Floats, second: Floats) -> tuple[float, float]:
    """The change in the steps that one half ranks first, and all change, as the other measures it.

    Each step's change counts in the direction that the ranking half saw; the mean of both roles.
    """
    top = total = 0.0
    for ranks, measures in ((first, second), (second, first)):
        along = np.sign(ranks) * measures
        order = np.argsort(-np.abs(ranks), kind="stable")
        top += along[order[: _count(len(along), TOP)]].sum() / 2
        total += along.sum() / 2
    return top, total
