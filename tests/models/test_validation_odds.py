"""How often winners' prefixes win, and where credit sits: by hand, and on planted worlds."""

import itertools

import numpy as np
import pytest
from scipy.stats import binom

from trimtab_models.validation import Compared, Games, credit, play, prefix_wins
from trimtab_models.validation.credit import gini
from trimtab_models.validation.intervals import over_prompts, wilson


def test_wilson_by_hand() -> None:
    """Eight of ten: Wilson's interval is 0.490 to 0.943."""
    one = wilson(8, 10)
    assert (one.value, one.low, one.high) == pytest.approx((0.8, 0.4901625, 0.9433178), abs=1e-6)
    none = wilson(0, 20)
    assert none.low == pytest.approx(0)
    assert none.high == pytest.approx(0.1611252, abs=1e-6)
    assert str(wilson(2.5, 5)).startswith("0.500 (")


def test_wilsons_interval_covers_as_often_as_it_says() -> None:
    covered = 0.0
    for wins in range(31):
        one = wilson(wins, 30)
        assert one.low is not None
        assert one.high is not None
        covered += float(binom.pmf(wins, 30, 0.7)) * (one.low <= 0.7 <= one.high)
    assert 0.92 < covered < 0.97


def test_an_interval_over_prompts_is_that_of_resampled_prompts() -> None:
    draw = np.random.default_rng(0)
    values, groups = np.repeat(draw.normal(size=50), 4), np.repeat(np.arange(50), 4).tolist()
    ones = np.ones(200)
    one = over_prompts(values, ones, groups, 200)
    assert one.low is not None
    assert one.high is not None
    error = np.std(values[::4], ddof=1) / 50**0.5
    assert one.value == pytest.approx(values.mean())
    assert one.high - one.low == pytest.approx(2 * 1.96 * error, rel=0.15)
    alone = over_prompts(values, ones, [0] * 200, 200)
    assert alone.low is alone.high is None


@pytest.mark.parametrize("seed", range(3))
def test_games_are_all_comparisons(seed: int) -> None:
    draw = np.random.default_rng(seed)
    sides = [draw.integers(0, 3, size=n).tolist() for n in (5, 4)]
    signs = [np.sign(a - b) for a, b in itertools.product(*sides)]
    games = play(*sides)
    assert games == (signs.count(1), signs.count(0), signs.count(-1))
    assert games.odds == pytest.approx(np.mean([(1 + s) / 2 for s in signs]))
    with pytest.raises(ValueError, match="no returns"):
        play([], [1.0])


def test_prefix_wins_by_hand() -> None:
    compared = [
        Compared("a", 0.1, Games(3, 0, 1), (1.0, 0.0)),  # 0.75
        Compared("a", 0.2, Games(1, 2, 1), (0.0, 1.0)),  # the rejected answer won: 0.5
        Compared("b", 0.15, Games(1, 0, 3), (0.0, 1.0)),  # 0.75
        Compared("b", 0.15, Games(4, 0, 0), (1.0, 1.0)),  # a tie has no winner
        Compared("b", 0.9, Games(0, 0, 4), (1.0, 0.0)),  # 0
    ]
    early, late = prefix_wins(compared)
    assert (early.above, early.to, late.above, late.to) == (0.0, 0.2, 0.8, 1.0)
    assert early.wins.value == pytest.approx((0.75 + 0.5 + 0.75) / 3)
    assert (early.wins.n, early.level, early.ties) == (3, 1, 2 / 12)
    assert early.ahead == wilson(2.5, 3)
    assert (late.wins.value, late.wins.low, late.ahead.value) == (0, None, 0)


def test_odds_are_right_on_average() -> None:
    """Over many draws, the share of won games is P(G > G') + ½·P(G = G')."""
    draw = np.random.default_rng(0)
    first, second = [0.2, 0.5, 0.3], [0.6, 0.3, 0.1]
    exact = sum(
        first[a] * second[b] * (1 + np.sign(a - b)) / 2
        for a, b in itertools.product(range(3), repeat=2)
    )
    odds = [
        play(draw.choice(3, 4, p=first).tolist(), draw.choice(3, 4, p=second).tolist()).odds
        for _ in range(3000)
    ]
    assert np.mean(odds) == pytest.approx(exact, abs=4 * np.std(odds) / 3000**0.5)


def test_gini_by_hand() -> None:
    assert gini(np.array([2.0, 2.0, 2.0])) == pytest.approx(0)
    assert gini(np.array([0.0, 0.0, 0.0, 5.0])) == pytest.approx(0.75)
    x = np.random.default_rng(0).exponential(size=40)
    slow = np.abs(x[:, None] - x[None]).sum() / (2 * 40**2 * x.mean())
    assert gini(x) == pytest.approx(slow)


def test_credit_by_hand() -> None:
    sparse, even = np.zeros(20), np.full(20, -0.1)
    sparse[7], sparse[3] = -0.6, 0.4
    one = credit([sparse, even, np.zeros(20), np.ones(1)], ["a", "b", "c", "d"])
    assert one is not None
    assert one.top.value == pytest.approx((1.0 + 0.1) / 2)
    assert one.even == pytest.approx(0.1)
    assert one.curve[0] == pytest.approx(one.top.value)
    assert one.curve[-1] == pytest.approx(1)
    assert one.gini.value == pytest.approx(gini(np.abs(sparse)) / 2)
    assert (one.answers, one.steps, one.still, one.replicated) == (2, 40, 1, None)
    assert credit([np.zeros(5), np.ones(1)], ["a", "b"]) is None


@pytest.mark.parametrize(("moves", "share"), [(1, 1.0), (10, 0.2)])
def test_noise_hides_sparse_credit_and_replication_shows_it(moves: int, share: float) -> None:
    """One step of twenty has all credit, or half of them a tenth each; measured with noise."""
    draw, n = np.random.default_rng(0), 400
    true = np.zeros((n, 20))
    for row in true:
        row[draw.choice(20, moves, replace=False)] = draw.choice([-1, 1], moves) / moves
    halves = [true + 0.02 * draw.normal(size=true.shape) for _ in range(2)]
    one = credit([*(sum(halves) / 2)], range(n), ([*halves[0]], [*halves[1]]))
    assert one is not None
    assert one.replicated is not None
    assert one.replicated.value == pytest.approx(share, abs=0.06)
    assert one.top.value < share + 0.06
