"""How well "a prefix inherits its answer's label" holds on the data, for any scorer."""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from trimtab_models.validation.estimates import Estimate, Figures, clusters, ratio


class Continued(NamedTuple):
    """A prefix of an answer, cut at a fraction of it, and the returns of its continuations."""

    prompt: Hashable
    fraction: float
    reward: float
    returns: Sequence[float]


class Inheritance(Figures):
    """P(win) at one fraction, over (losing prefix, winner) pairs."""

    fraction: float
    wins: Estimate


def inheritance(
    continued: Sequence[Continued],
    prompts: Sequence[Hashable],
    rewards: Sequence[float],
    *,
    seed: int = 0,
) -> list[Inheritance]:
    """The probability that the continued prefix of a losing answer wins.

        P(f) = mean over (l, w), R_l < R_w, of  (1/m) Σ_j [G_lj > R_w] + ½·[G_lj = R_w]

    where l is an answer cut at the fraction f, G_l1 ... G_lm are the rewards of m continuations of
    that prefix by the base, and w is any better answer to the same prompt. If prefixes inherited
    the label of their answers, P would be 0; an uninformative prefix wins one time in three, since
    each of three equal answers is equally likely the best. Standard errors by the bootstrap over
    prompts.

    Args:
        continued: the half-completed answers.
        prompts: [answers] the prompts of the whole answers, as in `continued`.
        rewards: [answers] their rewards.
        seed: of the bootstrap.

    Returns:
        One entry for each fraction, in ascending order; fractions without any pair are left out.
        n is the number of pairs.

    Raises:
        ValueError: prompts and rewards differ in length, or a prefix has no returns.
    """
    if len(prompts) != len(rewards):
        raise ValueError(f"expected a reward for each answer, not {len(rewards)}/{len(prompts)}.")
    answers: dict[Hashable, list[float]] = defaultdict(list)
    for prompt, reward in zip(prompts, rewards, strict=True):
        answers[prompt].append(reward)
    results = []
    for fraction in sorted({part.fraction for part in continued}):
        parts = [part for part in continued if part.fraction == fraction]
        numbers = clusters([part.prompt for part in parts])
        totals, counts = np.zeros(numbers.max() + 1), np.zeros(numbers.max() + 1)
        for cluster, part in zip(numbers, parts, strict=True):
            if not len(part.returns):
                raise ValueError("a half-completed answer has no returns; complete it first.")
            winners = np.array([r for r in answers[part.prompt] if r > part.reward])
            beats = np.sign(np.asarray(part.returns)[None] - winners[:, None])  # [winners, m]
            totals[cluster] += (0.5 + 0.5 * beats).mean(1).sum()
            counts[cluster] += len(winners)
        if counts.any():
            mean, error = ratio(totals, counts, seed=seed)
            wins = Estimate(
                mean=float(mean),
                standard_error=None if error is None else float(error),
                n=int(counts.sum()),
            )
            results.append(Inheritance(fraction=fraction, wins=wins))
    return results
