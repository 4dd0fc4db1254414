"""Statistics and measures of the arena."""

import numpy as np
import pytest
from scipy import stats as reference

from trimtab_lab.arena import stats
from trimtab_lab.arena.measures import diversity, flops


def test_paired_finds_a_difference_and_not_its_absence():
    draw = np.random.default_rng(0)
    worse = draw.normal(size=64)
    better = worse + 0.3 + 0.2 * draw.normal(size=64)
    result = stats.paired(better, worse)
    assert result.difference == pytest.approx(np.mean(better - worse))
    assert result.low < result.difference < result.high
    assert result.p < 1e-6
    assert stats.paired(worse, better).p > 0.99
    # The interval is about two standard errors to each side.
    error = np.std(better - worse, ddof=1) / 8
    assert result.high - result.low == pytest.approx(3.92 * error, rel=0.15)


def test_paired_without_any_difference():
    same = np.ones(10)
    assert stats.paired(same, same).p == 1
    assert stats.paired(same + 1, same).p < 0.01


def test_holm_against_its_definition():
    result = stats.holm([0.04, 0.001, 0.03, 0.5])
    assert result == pytest.approx([0.09, 0.004, 0.09, 0.5])
    assert stats.holm([]) == []


def test_holm_keeps_the_family_wise_error():
    draw = np.random.default_rng(1)
    wrong = np.mean([min(stats.holm(draw.uniform(size=10).tolist())) < 0.05 for _ in range(2000)])
    assert wrong == pytest.approx(0.05, abs=0.02)


def test_at_kl_reads_between_settings():
    flat = np.ones(4)
    points = [(0 * flat, 0 * flat), (2 * flat, 1 * flat), (3 * flat, 4 * flat)]
    np.testing.assert_allclose(stats.at_kl(points, 0.25), 1.0)  # half-way in √KL
    np.testing.assert_allclose(stats.at_kl(points, 2.25), 2.5)
    np.testing.assert_allclose(stats.at_kl(points, 9.0), 3.0)  # it may spend less
    assert stats.at_kl(points[1:], 0.5) is None


def drawn(draw, n=200, noise=0.3):
    """A base and two settings whose rewards rise with √KL; the prompts differ in both."""
    spread = draw.gamma(4.0, 0.25, n)
    points = [(draw.normal(0, 0.5, n), np.zeros(n))]
    for kl in (0.5, 2.0):
        spent = kl * spread * draw.uniform(1 - noise, 1 + noise, n)
        points.append((np.sqrt(kl) + draw.normal(0, 0.5, n), spent))
    return points


def test_the_error_at_a_kl_contains_that_of_the_mean_kl():
    """The bootstrap draws the place between the settings anew each time."""
    points = drawn(np.random.default_rng(3))
    result = stats.estimate(stats.at_kl(points, 1.0))
    low, high = stats.interval_at_kl(points, 1.0)
    assert high - low == pytest.approx(3.92 * result.standard_error, rel=0.1)
    roots = np.sqrt([spent.mean() for _, spent in points[1:]])
    t = (1 - roots[0]) / (roots[1] - roots[0])
    assert result.mean == pytest.approx(np.mean((1 - t) * points[1][0] + t * points[2][0]))


def test_arms_with_the_same_answers_and_other_kl_do_not_differ():
    """Where the mean KL counts as known, half of these tests find a difference, either way."""
    draw, results = np.random.default_rng(4), []
    for _ in range(200):
        points = drawn(draw)
        other = [(r, k * draw.uniform(0.8, 1.2, len(k))) for r, k in points]
        sides = stats.at_kl(points, 1.0), stats.at_kl(other, 1.0)
        results.append(stats.paired(*sides, read=True))
    p = np.array([result.p for result in results])
    assert np.mean(p < 0.05) < 0.1
    assert np.mean(p > 0.95) < 0.1
    assert np.mean([result.low <= 0 <= result.high for result in results]) > 0.9


def test_few_large_differences_against_many_small_ones():
    """Two methods with the same answers to most prompts: by ranks they differ, by means not."""
    small, large = np.full(180, 0.01), np.full(20, -0.09)
    d = np.concatenate((small, large)) + 1e-4 * np.random.default_rng(5).normal(size=200)
    assert stats.paired(d, 0 * d, read=True).p > 0.2
    assert stats.paired(d, 0 * d).p < 1e-6


def test_estimate():
    values = np.random.default_rng(2).normal(size=50)
    result = stats.estimate(values)
    assert result.standard_error == pytest.approx(reference.sem(values))
    assert result.n == 50


def test_wins():
    ours, theirs = np.array([[1.0, 0.0], [2.0, 1.0]]), np.array([[0.0, 0.0], [3.0, 0.0]])
    assert stats.wins(ours, theirs) == {"win": 0.5, "tie": 0.25}


def test_diversity():
    assert diversity(["a b c", "a b c"]) == 0
    assert diversity(["a b c", "d e f"]) == 1
    assert diversity(["a b c d", "a x c d"]) == pytest.approx(1 - 0.75)  # LCS of 3 of 4
    assert np.isnan(diversity(["alone"]))


def test_flops_are_those_of_the_papers():
    """VAS: T·m for the base, T·k·n for a scorer that reads k candidates a step; 2 a parameter."""
    assert flops(100, 10, 2 * 7 * 10 * 5) == 2 * (10 * 100 + 10 * 5 * 7)
