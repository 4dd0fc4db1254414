"""The exact frontier: against enumeration, a solver, and brute force."""

from itertools import combinations

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import logsumexp

from trimtab_lab.arena.frontier import best_of, exact, sampled
from trimtab_lab.worlds.tiny import PROMPTS, Tiny


@pytest.fixture(scope="module")
def answers():
    """(probabilities, rewards) of every completion, a pair a prompt."""
    tiny = Tiny()
    half = len(tiny.finals) // len(PROMPTS)
    p = tiny.probabilities.double().numpy().reshape(len(PROMPTS), half)
    return p / p.sum(1, keepdims=True), tiny.rewards.numpy().reshape(len(PROMPTS), half)


def optimum(probabilities, rewards, beta):
    """The definition: mean reward and mean KL of π0·exp(βR)/Z."""
    points = []
    for p, r in zip(probabilities, rewards, strict=True):
        log_q = np.log(p) + beta * r
        log_q -= logsumexp(log_q)
        q = np.exp(log_q)
        points.append((q @ r, q @ (log_q - np.log(p))))
    return np.mean(points, axis=0)


@pytest.mark.parametrize("kl", [0.05, 0.3, 1.0, 2.0])
def test_exact_gain_is_the_solution_of_the_constrained_problem(answers, kl):
    beta = brentq(lambda b: optimum(*answers, b)[1] - kl, 1e-6, 200)
    wanted = optimum(*answers, beta)[0] - optimum(*answers, 0.0)[0]
    assert exact(*answers).gain(kl) == pytest.approx(wanted, rel=2e-3)


def test_no_policy_beats_it(answers):
    """Random policies at their own KL: none gains more, on 300 tries."""
    frontier, draw = exact(*answers), np.random.default_rng(0)
    probabilities, rewards = answers
    best = 0.0
    for _ in range(300):
        noise = draw.normal(size=rewards.shape) * draw.uniform(0, 3)
        log_q = np.log(probabilities) + draw.uniform(0, 8) * rewards + noise
        log_q -= logsumexp(log_q, axis=1, keepdims=True)
        q = np.exp(log_q)
        kl = (q * (log_q - np.log(probabilities))).sum(1).mean()
        gain = ((q - probabilities) * rewards).sum(1).mean()
        best = max(best, gain / frontier.gain(kl))
    assert 0.9 < best <= 1 + 1e-3


VALUES = np.linspace(-1, 1, 41)
SHAPES = {
    "uniform": np.ones(41),
    "normal": np.exp(-((VALUES / 0.35) ** 2) / 2),
    "rare success": np.eye(41)[0] * 0.95 + np.eye(41)[-1] * 0.05,
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("samples", [100, 800])
def test_samples_estimate_it_up_to_the_limit(shape, samples):
    p = SHAPES[shape] / SHAPES[shape].sum()
    drawn = np.random.default_rng(1).choice(VALUES, (64, samples), p=p)
    estimate, wanted = sampled(drawn), exact([p[p > 0]], [VALUES[p > 0]])
    assert 0.5 < estimate.limit < np.log(samples / 10) + 0.5
    chance = estimate.reward[0].mean() - wanted.reward[0].mean()
    for kl in np.linspace(0.3, 1, 4) * estimate.limit:
        assert estimate.gain(kl) + chance == pytest.approx(wanted.gain(kl), rel=0.03)


def test_beyond_the_limit_few_samples_fall_short():
    """A Gaussian reward: the optimum gains √(2·KL); the best of 200 answers cannot."""
    drawn = np.random.default_rng(2).normal(size=(64, 200))
    estimate = sampled(drawn)
    assert estimate.limit < 2.5
    near, far = estimate.limit, 4.5
    assert estimate.gain(near) == pytest.approx(np.sqrt(2 * near), rel=0.03)
    assert estimate.gain(far) < 0.95 * np.sqrt(2 * far)


def test_efficiency_of_the_optimum_is_one(answers):
    probabilities, rewards = answers
    many = exact(np.repeat(probabilities, 20, axis=0), np.repeat(rewards, 20, axis=0))
    at = len(many.beta) // 2
    whole = many.efficiency(many.reward[at], many.kl[at])
    assert whole.share == pytest.approx(1, abs=2e-3)
    assert whole.low == pytest.approx(1, abs=2e-3)
    assert whole.high == pytest.approx(1, abs=2e-3)
    half = many.efficiency((many.reward[at] + many.reward[0]) / 2, many.kl[at])
    assert half.share == pytest.approx(whole.share / 2)
    assert many.efficiency(many.reward[0], many.kl[0]) is None


def test_efficiency_beyond_the_limit_is_not_reported():
    estimate = sampled(np.random.default_rng(3).normal(size=(8, 50)))
    assert estimate.efficiency(estimate.reward[-1], np.full(8, estimate.limit + 0.1)) is None


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_best_of_is_the_mean_over_all_subsets(n):
    rewards = np.random.default_rng(4).normal(size=(3, 7)).round(1)
    wanted = [np.mean([max(some) for some in combinations(row, n)]) for row in rewards]
    estimate, kl = best_of(rewards, n)
    np.testing.assert_allclose(estimate, wanted, atol=1e-12)
    assert kl == pytest.approx(np.log(n) - (n - 1) / n)


def test_a_reward_that_never_varies_has_nothing_to_gain():
    estimate = sampled(np.ones((4, 30)))
    assert estimate.gain(1.0) == pytest.approx(0, abs=1e-6)
