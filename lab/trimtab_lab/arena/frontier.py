"""The exact frontier of reward over KL to the base: the optimum of all decoders.

Of all distributions of answers with E KL(π ‖ π0) within a budget, this one has the highest reward:

    π*(y | x) = π0(y | x)·exp(β·R(x, y)) / Z(x),      KL = β·E_π*[R] − log Z(x)

with one β for all prompts: the KL-regularised optimum (of PPO and DPO; VAS eq. 1). If every answer
is enumerated, this is exact. With n answers of the base per prompt, each has the weight 1/n, and
both sums are self-normalised importance estimates.

Limit of the estimate. Its bias at a prompt is of the order of 1/ESS, with the effective sample size
ESS = 1/Σ p². We use it up to the KL where the mean of 1/ESS over prompts reaches 1/10: there the
estimated gain is at most 2 % too low, for normal rewards, uniform rewards and rare successes (a
test measures it). Above that KL the estimate approaches the best of the n answers, which is below
the true optimum, so efficiencies would be too high. Kinds of answers that are not among the n
answers are ignored.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats: TypeAlias = NDArray[np.float64]

MIN_ESS = 10.0
GRID = 400
RESAMPLES = 2000


@dataclass(frozen=True)
class Frontier:
    """The optimum over a grid of β, which starts at β = 0, the base."""

    beta: Floats  # [grid], rising
    reward: Floats  # [grid, prompts] E_π*[R]
    kl: Floats  # [grid, prompts] nats
    inverse_ess: Floats  # [grid] mean of 1/ESS over prompts; 0 if exact

    def gain(self, kl: float | Floats) -> Floats:
        """Mean reward minus the base's at a mean KL, in the shape of `kl`."""
        means = self.reward.mean(1)
        return np.interp(kl, self.kl.mean(1), means - means[0])

    @property
    def limit(self) -> float:
        """The largest KL at which the estimate is reliable."""
        kl, far = self.kl.mean(1), self.inverse_ess > 1 / MIN_ESS
        return float(kl[max(int(far.argmax()) - 1, 0)]) if far.any() else float(kl[-1])

    def efficiency(self, rewards: Floats, kl: Floats, seed: int = 0) -> "Efficiency | None":
        """A method's gain as a share of the optimum's gain at the same KL.

        Args:
            rewards, kl: of the method, mean per prompt, in the frontier's order, [prompts].
            seed: of the bootstrap.

        Returns:
            None if its KL is 0 or beyond the limit.
        """
        spent = float(kl.mean())
        if not 0 < spent <= self.limit:
            return None
        rng = np.random.default_rng(seed)
        n = len(rewards)
        weights = rng.multinomial(n, np.full(n, 1 / n), RESAMPLES) / n  # [resamples, prompts]
        weights = np.vstack((np.full(n, 1 / n), weights))
        gains = weights @ (rewards - self.reward[0])
        best = weights @ (self.reward - self.reward[0]).T  # [1 + resamples, grid]
        costs = weights @ self.kl.T
        at = weights @ kl
        optimum = [np.interp(x, xs, ys) for x, xs, ys in zip(at, costs, best, strict=True)]
        shares = gains / np.array(optimum)
        low, high = np.quantile(shares[1:], (0.025, 0.975))
        return Efficiency(float(shares[0]), float(low), float(high), spent)


@dataclass(frozen=True)
class Efficiency:
    """A share of the optimum's gain, its 95 % bootstrap interval over prompts, and the KL."""

    share: float
    low: float
    high: float
    kl: float

    def __str__(self) -> str:
        return f"{self.share:.2f} [{self.low:.2f}, {self.high:.2f}]"


def exact(probabilities: Sequence[ArrayLike], rewards: Sequence[ArrayLike]) -> Frontier:
    """The frontier from all answers of each prompt: probabilities under the base, and rewards."""
    weights = [np.asarray(p, dtype=float) for p in probabilities]
    return _frontier(weights, [np.asarray(r, dtype=float) for r in rewards], sampled=False)


def sampled(rewards: Floats) -> Frontier:
    """The frontier estimated from answers of the base at temperature 1: [prompts, samples]."""
    n = rewards.shape[1]
    return _frontier([np.full(n, 1 / n)] * len(rewards), list(rewards), sampled=True)


def _frontier(weights: list[Floats], rewards: list[Floats], *, sampled: bool) -> Frontier:
    spread = np.mean([np.sqrt(w @ (r - w @ r) ** 2) for w, r in zip(weights, rewards, strict=True)])
    scale = 1 / max(float(spread), 1e-9)
    beta = np.concatenate(([0.0], scale * np.geomspace(1e-2, 1e3, GRID)))
    tilted = [tilt(w, r, beta) for w, r in zip(weights, rewards, strict=True)]
    reward, kl, ess = (np.stack(column, axis=1) for column in zip(*tilted, strict=True))
    inverse_ess = (1 / ess).mean(1) if sampled else np.zeros(len(beta))
    return Frontier(beta, reward, np.maximum.accumulate(kl, axis=0), inverse_ess)


def tilt(weights: Floats, rewards: Floats, beta: Floats) -> tuple[Floats, Floats, Floats]:
    """E_π*[R], KL and ESS of one prompt at each β, each [grid]; weights, rewards: [answers]."""
    with np.errstate(divide="ignore"):
        logits = np.log(weights) + beta[:, None] * rewards  # [grid, answers]
    top = logits.max(1, keepdims=True)
    log_z = top[:, 0] + np.log(np.exp(logits - top).sum(1))
    p = np.exp(logits - log_z[:, None])
    reward = p @ rewards
    return reward, np.maximum(beta * reward - log_z, 0.0), 1 / (p**2).sum(1)


def best_of(rewards: Floats, n: int) -> tuple[Floats, float]:
    """Exact best-of-n by the reward itself, from samples: expected best per prompt, and its KL.

        E max = Σ_i r_(i)·C(i − 1, n − 1)/C(S, n),      KL ≤ log n − (n − 1)/n

    over all subsets of n of the S samples; the bound is from Stiennon et al. (2020) and is tight if
    no two answers tie.

    Args:
        rewards: [prompts, samples] of the base.
        n: at most the number of samples.
    """
    samples = rewards.shape[1]
    ranks = np.arange(n, samples + 1)
    # C(i − 1, n − 1)/C(S, n), from i = S (where it is n/S) downward; ratios avoid overflow.
    ratios = (ranks[1:] - n) / (ranks[1:] - 1)
    share = n / samples * np.concatenate((np.cumprod(ratios[::-1])[::-1], [1.0]))
    return np.sort(rewards, axis=1)[:, n - 1 :] @ share, float(np.log(n) - (n - 1) / n)
