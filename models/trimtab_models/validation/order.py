"""Prefix-AUC: how often the order of prefix scores equals the final order of rewards."""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from trimtab_models.validation.estimates import Estimate, Figures, Floats, checked, clusters, ratio

TENTHS = range(1, 11)


class PrefixAuc(Figures):
    """The result of `prefix_auc`.

    `mean` is over the positions, 10 % to 100 %, with equal weights. `within_prompts` is False if no
    prompt has two completions of different reward; then completions of different prompts are
    compared.
    """

    mean: Estimate
    positions: dict[str, Estimate]
    within_prompts: bool


def prefix_auc(
    scores: Sequence[Any], labels: ArrayLike, groups: Sequence[Hashable], *, seed: int = 0
) -> PrefixAuc:
    """The share of pairs whose better completion scores higher when both are prefixes.

        AUC(p) = mean over pairs with R_i > R_j of  [s_i > s_j] + ½·[s_i = s_j],
        s_i = s(x, y_i^{1:⌈p·T_i⌉}),   p = 10 %, 20 %, ... 100 %

    over all pairs of completions of the same prompt. ½ is chance. The mean is
    (AUC(10 %) + ... + AUC(100 %)) / 10. Standard errors are those of the bootstrap over prompts.

    If no prompt has two completions of different reward, all pairs across prompts are compared.
    Each pair is then counted half for each of its prompts, and as AUC is a U-statistic of degree
    two its standard error is twice that of the mean of these halves (Hoeffding, "A class of
    statistics with asymptotically normal distribution", §5).

    Args:
        scores: one [tokens] of prefix scores for each completion.
        labels: [completions] rewards of the whole completions.
        groups: [completions] the prompt of each, any hashable value.
        seed: of the bootstrap.

    Raises:
        ValueError: all rewards are equal; or as `checked`.
    """
    arrays, rewards = checked(scores, labels, groups), np.asarray(labels, dtype=float)
    at = np.array([_at_tenths(row) for row in arrays])  # [completions, 10]
    numbers = clusters(groups)
    members = [np.flatnonzero(numbers == group) for group in range(numbers.max() + 1)]
    totals, counts = _compare(at, rewards, [(rows, rows) for rows in members])
    within = bool(counts.any())
    if not within:
        totals, counts = _compare(at, rewards, [(rows, slice(None)) for rows in members])
    if not counts.any():
        raise ValueError(
            f"all {len(arrays)} completions have the reward {rewards[0]:g}, so they have no order; "
            "validate on completions of different rewards."
        )
    totals = np.column_stack((totals, totals.mean(1)))  # [clusters, 11], the mean last
    means, errors = ratio(totals, counts, seed=seed)
    degree = 1 if within else 2
    pairs = int(counts.sum()) // 2
    *positions, mean = (
        Estimate(
            mean=float(means[p]),
            standard_error=None if errors is None else degree * float(errors[p]),
            n=pairs,
        )
        for p in range(len(means))
    )
    names = [f"{10 * tenth}%" for tenth in TENTHS]
    return PrefixAuc(
        mean=mean, positions=dict(zip(names, positions, strict=True)), within_prompts=within
    )


def _at_tenths(row: Floats) -> Floats:
    return row[[(tenth * len(row) + 9) // 10 - 1 for tenth in TENTHS]]  # ⌈p·T⌉ without rounding


def _compare(
    at: Floats, rewards: Floats, sides: Sequence[tuple[Any, Any]]
) -> tuple[Floats, Floats]:
    """Won pairs [clusters, 10] and all pairs [clusters], between the two sides of each cluster.

    A pair is won if the better completion scores higher. Every pair is counted twice, once from
    each side, which cancels in the ratio.
    """
    totals, counts = np.zeros((len(sides), at.shape[1])), np.zeros(len(sides))
    for cluster, (left, right) in enumerate(sides):
        sign = np.sign(rewards[left][:, None] - rewards[right][None])  # [left, right]
        gaps = np.sign(at[left][:, None] - at[right][None])  # [left, right, 10]
        won = 0.5 + 0.5 * gaps * sign[..., None]
        totals[cluster] = (won * (sign != 0)[..., None]).sum((0, 1))
        counts[cluster] = (sign != 0).sum()
    return totals, counts
