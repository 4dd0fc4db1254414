"""The numbers of a validation: known answers, and slow references on random inputs."""

import math
import random
from itertools import pairwise, permutations
from typing import Any

import numpy as np
import pytest

from trimtab_models.validation import (
    Continued,
    inheritance,
    known,
    length_correlation,
    prefix_auc,
    token_mean_reciprocal_rank,
    value_agreement,
)
from trimtab_models.validation.estimates import RESAMPLES, mean_of, ratio, spearman
from trimtab_models.validation.known import PARTS, correlation


def _world(seed: int, prompts: int = 6, most: int = 5, levels: int = 4) -> Any:
    """Ragged scores on few levels, so that ties abound; rewards likewise."""
    draw = random.Random(seed)
    scores, labels, groups = [], [], []
    for prompt in range(prompts):
        for _ in range(draw.randint(1, most)):
            length = draw.randint(1, 13)
            scores.append(np.array([float(draw.randrange(levels)) for _ in range(length)]))
            labels.append(draw.randrange(levels) / 2)
            groups.append(f"prompt {prompt}")
    order = draw.sample(range(len(scores)), len(scores))  # prompts need not stand together
    return [scores[i] for i in order], [labels[i] for i in order], [groups[i] for i in order]


def _follow(labels: Any, lengths: Any, sign: float, noise: float = 0.0, seed: int = 0) -> Any:
    draw = np.random.default_rng(seed)
    return [
        sign * label + noise * draw.normal(size=length)
        for label, length in zip(labels, lengths, strict=True)
    ]


def _slow_auc(scores: Any, labels: Any, groups: Any, tenth: int) -> float:
    won = []
    for i, j in permutations(range(len(scores)), 2):
        if groups[i] == groups[j] and labels[i] > labels[j]:
            a, b = (scores[x][math.ceil(tenth * len(scores[x]) / 10) - 1] for x in (i, j))
            won.append(1.0 if a > b else 0.5 if a == b else 0.0)
    return sum(won) / len(won)


@pytest.mark.parametrize("seed", range(5))
def test_prefix_auc_is_the_share_of_won_pairs(seed: int) -> None:
    scores, labels, groups = _world(seed)
    result = prefix_auc(scores, labels, groups)
    slow = [_slow_auc(scores, labels, groups, tenth) for tenth in range(1, 11)]
    assert [p.mean for p in result.positions.values()] == pytest.approx(slow)
    assert list(result.positions)[::9] == ["10%", "100%"]
    assert result.mean.mean == pytest.approx(sum(slow) / 10)
    assert result.within_prompts
    pairs = sum(
        groups[i] == groups[j] and labels[i] > labels[j]
        for i, j in permutations(range(len(labels)), 2)
    )
    assert result.mean.n == pairs


@pytest.mark.parametrize("seed", range(3))
def test_one_completion_a_prompt_is_compared_across_prompts(seed: int) -> None:
    scores, labels, _ = _world(seed, prompts=20, most=1)
    result = prefix_auc(scores, labels, range(20))
    slow = [_slow_auc(scores, labels, [0] * 20, tenth) for tenth in range(1, 11)]
    assert not result.within_prompts
    assert [p.mean for p in result.positions.values()] == pytest.approx(slow)
    assert result.mean.n == sum(a > b for a in labels for b in labels)


@pytest.mark.parametrize(("sign", "expected"), [(1, 1.0), (-1, 0.0)])
@pytest.mark.parametrize("single", [False, True])
def test_a_perfect_scorer_wins_every_pair(sign: int, expected: float, single: bool) -> None:
    _, _, groups = _world(0, prompts=20)
    labels = np.random.default_rng(0).normal(size=len(groups))
    scores = _follow(labels, [3 + i % 7 for i in range(len(groups))], sign)
    result = prefix_auc(scores, labels, range(len(groups)) if single else groups)
    assert result.mean.mean == expected
    assert result.mean.standard_error == pytest.approx(0, abs=1e-12)


@pytest.mark.slow
def test_a_scorer_of_chance_is_near_a_half_and_its_error_says_how_near() -> None:
    draw, misses = np.random.default_rng(1), []
    for single in [False, True]:
        for _ in range(60):
            groups = np.arange(160) if single else np.repeat(np.arange(40), 4)
            labels = draw.normal(size=160)
            scores = [np.full(5, draw.normal()) for _ in labels]
            result = prefix_auc(scores, labels, groups.tolist()).mean
            assert result.standard_error is not None
            misses.append((result.mean - 0.5) / result.standard_error)
    assert abs(np.mean(misses)) < 0.3
    assert 0.75 < np.std(misses[:60]) < 1.4  # within prompts
    assert 0.75 < np.std(misses[60:]) < 1.4  # across them: the doubled error


def test_a_ratios_error_is_that_of_a_mean_when_clusters_are_alike() -> None:
    values = np.random.default_rng(1).normal(size=400)
    result = mean_of(values, range(400))
    assert result.mean == pytest.approx(values.mean())
    assert result.standard_error == pytest.approx(values.std(ddof=1) / 20, rel=0.1)
    doubled = mean_of(np.repeat(values, 2), np.repeat(np.arange(400), 2).tolist())
    assert doubled.standard_error == pytest.approx(result.standard_error)
    assert doubled.n == 800
    assert ratio(np.array([3.0, 9.0]), np.array([4.0, 0.0])) == (0.75, None)
    assert str(mean_of([0.25], ["a"])) == "0.250"


def _slow_less_means(values: Any, groups: Any) -> Any:
    means = {g: np.mean([v for v, h in zip(values, groups, strict=True) if h == g]) for g in groups}
    return np.array([v - means[g] for v, g in zip(values, groups, strict=True)])


@pytest.mark.parametrize("seed", range(3))
def test_what_is_known_is_the_correlation_of_prefix_and_reward(seed: int) -> None:
    scores, labels, groups = _world(seed, prompts=12)
    results = known(scores, labels, groups)
    assert [result.percent for result in results] == list(PARTS) == [10, 25, 50, 75, 100]
    kept = [i for i, g in enumerate(groups) if groups.count(g) > 1]
    assert 1 < len(kept) < len(groups)
    for result in results:
        at = [row[math.ceil(result.percent * len(row) / 100) - 1] for row in scores]
        assert result.reward.value == pytest.approx(np.corrcoef(at, labels)[0, 1])
        assert result.reward.n == len(labels)
        inside = [_slow_less_means(side, groups)[kept] for side in (at, labels)]
        assert result.beyond_prompt is not None
        assert result.beyond_prompt.value == pytest.approx(np.corrcoef(*inside)[0, 1])
        assert result.beyond_prompt.n == len(kept)


def test_the_interval_is_that_of_resampled_prompts() -> None:
    """The answers of a prompt share most of their score and reward: they are not independent."""
    draw = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), 4)
    first = np.repeat(draw.normal(size=30), 4) + 0.3 * draw.normal(size=120)
    second = np.repeat(draw.normal(size=30), 4) + 0.5 * first
    result = correlation(first, second, groups.tolist())
    values = []
    for counts in np.random.default_rng(0).multinomial(30, np.full(30, 1 / 30), size=RESAMPLES):
        rows = np.repeat(np.arange(120), counts[groups])
        values.append(np.corrcoef(first[rows], second[rows])[0, 1])
    assert result is not None
    assert result.value == pytest.approx(np.corrcoef(first, second)[0, 1])
    assert (result.low, result.high) == pytest.approx(np.quantile(values, [0.025, 0.975]))
    alone = correlation(first, second, [0] * 120)
    assert alone is not None
    assert alone.value == pytest.approx(result.value)
    assert alone.low is alone.high is None


def test_what_the_prompt_tells_is_not_known_beyond_it() -> None:
    """A score of the prompt alone; one that learns the answer; and their sum."""
    draw, n = np.random.default_rng(0), 8
    groups = np.repeat(np.arange(60), n).tolist()
    easy, own = np.repeat(draw.normal(size=60), n), draw.normal(size=60 * n)
    labels = easy + own
    read = np.arange(1, 101) / 100
    prompt_only = [np.full(100, ease) for ease in easy]
    # Noise of variance 1/p² − 1 makes ρ(p·(own + noise), own) = p once p of it has been read.
    answer_only = [one * read + np.sqrt(1 - read**2) * draw.normal() for one in own]
    both = [a + b for a, b in zip(prompt_only, answer_only, strict=True)]
    for scores, whole, inside in (
        (prompt_only, [0.5**0.5] * 5, [0] * 5),
        (answer_only, [p / 2**0.5 / 100 for p in PARTS], [p / 100 for p in PARTS]),
        (both, [(1 + p / 100) / 2 for p in PARTS], [p / 100 for p in PARTS]),
    ):
        results = known(scores, labels, groups)
        values = [result.beyond_prompt.value for result in results]  # type: ignore[union-attr]
        assert [result.reward.value for result in results] == pytest.approx(whole, abs=0.1)
        assert values == pytest.approx(inside, abs=0.1)
    assert values[-1] == pytest.approx(1)


def test_an_interval_of_chance_includes_0_as_often_as_it_says() -> None:
    draw, covered = np.random.default_rng(0), []
    for _ in range(40):
        groups = np.repeat(np.arange(40), 3).tolist()
        result = known([[s] for s in draw.normal(size=120)], draw.normal(size=120), groups)
        beyond = result[0].beyond_prompt
        assert beyond is not None
        assert beyond.low is not None
        assert beyond.high is not None
        covered.append(beyond.low <= 0 <= beyond.high)
    assert sum(covered) >= 34


def test_what_cannot_be_correlated() -> None:
    row = [1.0, 2.0]
    flat = known([[0.1 + 0.2]] * 4, [1.0, 2.0, 3.0, 5.0], ["a", "a", "b", "b"])
    assert flat[0].reward.value == 0
    assert flat[0].beyond_prompt is not None
    assert flat[0].beyond_prompt.value == 0
    by_prompt = known([row] * 4, [0.1, 0.1, 0.7, 0.7], ["a", "a", "b", "b"])
    assert by_prompt[0].beyond_prompt is None  # the rewards of a prompt are equal
    single = known([row, row, row], [1.0, 2.0, 4.0], ["a", "b", "c"])
    assert single[0].beyond_prompt is None
    with pytest.raises(ValueError, match="have the reward 1; validate"):
        known([row, row], [1.0, 1.0], ["a", "a"])


def _slow_rank(scores: Any, final: Any, groups: Any) -> float:
    prompts = []
    for group in sorted(set(groups)):
        rows = [i for i, g in enumerate(groups) if g == group]
        if len({float(final[i]) for i in rows}) < 2:
            continue
        winners = [i for i in rows if final[i] == max(final[j] for j in rows)]
        means = []
        for w in winners:
            terms = []
            for t in range(len(scores[w])):
                now = {i: scores[i][min(t, len(scores[i]) - 1)] for i in rows}
                orders = list(permutations(rows))
                orders = [
                    order for order in orders if all(now[a] >= now[b] for a, b in pairwise(order))
                ]
                terms.append(sum(1 / (o.index(w) + 1) for o in orders) / len(orders))
            means.append(sum(terms) / len(terms))
        prompts.append(sum(means) / len(means))
    return sum(prompts) / len(prompts)


@pytest.mark.parametrize("seed", range(3))
def test_reciprocal_rank_is_the_mean_over_all_orders(seed: int) -> None:
    scores, labels, groups = _world(seed, prompts=5, most=4)
    result = token_mean_reciprocal_rank(scores, labels, groups)
    assert result.by_score is not None
    assert result.by_reward is not None
    ends = [row[-1] for row in scores]
    assert result.by_score.mean == pytest.approx(_slow_rank(scores, ends, groups))
    assert result.by_reward.mean == pytest.approx(_slow_rank(scores, labels, groups))


def test_reciprocal_rank_knows_perfection_and_chance() -> None:
    labels, groups = [0.0, 1.0, 2.0, 3.0] * 3, [0] * 4 + [1] * 4 + [2] * 4
    lengths = [2 + i % 5 for i in range(12)]
    best = token_mean_reciprocal_rank(_follow(labels, lengths, 1), labels, groups)
    assert best.by_reward is not None
    assert best.by_score is not None
    assert best.by_reward.mean == best.by_score.mean == 1
    worst = token_mean_reciprocal_rank(_follow(labels, lengths, -1), labels, groups)
    assert worst.by_reward is not None
    assert worst.by_reward.mean == pytest.approx(0.25)
    flat = token_mean_reciprocal_rank(_follow(labels, lengths, 0), labels, groups)
    assert flat.by_score is None  # no completion comes out on top
    assert flat.by_reward is not None
    assert flat.by_reward.mean == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    assert flat.by_reward.mean == pytest.approx(flat.by_reward_chance)
    single = token_mean_reciprocal_rank(_follow(labels, lengths, 1), labels, range(12))
    assert single.by_reward is None


def test_a_scorer_that_counts_tokens_is_found_out() -> None:
    draw = np.random.default_rng(0)
    lengths = draw.permutation(np.arange(1, 41))
    labels = draw.normal(size=40)
    scores = [np.arange(n, dtype=float) for n in lengths]
    result = length_correlation(scores, labels, range(40))
    assert result.score == pytest.approx(1)
    assert result.reward is not None
    assert abs(result.reward) < 0.4
    assert result.score_and_reward == result.reward
    flat = length_correlation([np.zeros(n) for n in lengths], labels, range(40))
    assert flat.score is None
    assert spearman([1.0, 5.0, 2.0], [10.0, 30.0, 20.0]) == pytest.approx(1)


def test_exact_values_are_calibrated_and_miss_by_the_noise_alone() -> None:
    draw = np.random.default_rng(0)
    exact = draw.uniform(-1, 1, 4000)
    returns = exact[:, None] + 0.5 * draw.normal(size=(4000, 10))
    means, errors = returns.mean(1), returns.std(1, ddof=1) / 10**0.5
    groups = (np.arange(4000) // 4).tolist()
    result = value_agreement(exact, means, errors, groups)
    assert result.slope == pytest.approx(1, abs=0.02)
    assert result.intercept == pytest.approx(0, abs=0.02)
    assert result.mse.mean == pytest.approx(result.noise, rel=0.1)
    assert result.noise == pytest.approx(0.025, rel=0.05)
    assert result.calibration_error < 0.02
    assert sum(b.n for b in result.bins) == 4000
    assert len(result.bins) == 10

    other = value_agreement(3 * exact + 1, means, errors, groups)  # another scale
    assert other.slope == pytest.approx(1 / 3, abs=0.01)
    assert other.mse.mean > 1
    assert other.mse_after_affine.mean == pytest.approx(result.mse_after_affine.mean)
    assert other.spearman == pytest.approx(result.spearman)
    assert other.calibration_error > 1

    flat = value_agreement(np.zeros(4000), means, errors, groups)
    assert flat.r2 == pytest.approx(0, abs=0.01)
    assert flat.slope is flat.spearman is None
    assert len(flat.bins) == 1


def test_value_agreement_by_hand() -> None:
    result = value_agreement([0.0, 1.0, 1.0], [0.5, 1.0, 0.0], [0.1, 0.2, 0.2], ["a", "b", "b"])
    assert result.mse.mean == pytest.approx((0.25 + 0 + 1) / 3)
    assert result.mse.n == 3
    assert result.noise == pytest.approx(0.03)
    assert result.r2 == pytest.approx(1 - (1.25 / 3) / (0.5 / 3))
    assert (result.slope, result.intercept) == (pytest.approx(0), pytest.approx(0.5))
    assert result.calibration_error == pytest.approx((0.5 + 2 * 0.5) / 3)


def test_inheritance_by_hand() -> None:
    prompts, rewards = ["a", "a", "a", "b", "b"], [0.0, 1.0, 2.0, 5.0, 6.0]
    continued = [
        Continued("a", 0.25, 0.0, [0.0, 1.0, 3.0]),  # beats 1: 0, ½, 1; beats 2: 0, 0, 1
        Continued("a", 0.25, 2.0, [9.0]),  # no answer is better: not a loser
        Continued("b", 0.25, 5.0, [7.0, 6.0]),  # 1, ½
        Continued("b", 0.75, 5.0, [5.0, 5.0]),
        Continued("c", 0.5, 0.0, [1.0]),  # no answers to this prompt
    ]
    early, late = inheritance(continued, prompts, rewards)
    assert early.fraction == 0.25
    assert early.wins.mean == pytest.approx((0.5 + 1 / 3 + 0.75) / 3)
    assert early.wins.n == 3
    assert (late.fraction, late.wins.mean, late.wins.standard_error) == (0.75, 0, None)


def test_a_prefix_that_says_nothing_wins_one_time_in_three() -> None:
    draw = np.random.default_rng(0)
    prompts = np.repeat(np.arange(300), 4).tolist()
    rewards = draw.normal(size=1200).tolist()
    continued = [
        Continued(prompt, 0.5, reward, draw.normal(size=5).tolist())
        for prompt, reward in zip(prompts, rewards, strict=True)
    ]
    [result] = inheritance(continued, prompts, rewards)
    assert result.wins.standard_error is not None
    assert abs(result.wins.mean - 1 / 3) < 4 * result.wins.standard_error < 0.1


def test_what_cannot_be_validated_says_so() -> None:
    row = np.zeros(2)
    for scores, labels, groups, words in [
        ([], [], [], "no completion"),
        ([row, row], [1.0], ["a", "a"], "as many scores"),
        ([row, np.zeros(0)], [0.0, 1.0], ["a", "a"], "one token"),
        ([row, row * math.nan], [0.0, 1.0], ["a", "a"], "fix the scorer"),
        ([row, row], [0.0, math.inf], ["a", "a"], "label is not finite"),
        ([row, row], [1.0, 1.0], ["a", "a"], "different rewards"),
        ([row], [1.0], ["a"], "different rewards"),
    ]:
        with pytest.raises(ValueError, match=words):
            prefix_auc(scores, labels, groups)
    with pytest.raises(ValueError, match="standard error"):
        value_agreement([1.0], [1.0], [math.nan], ["a"])
    with pytest.raises(ValueError, match="no returns"):
        inheritance([Continued("a", 0.5, 0.0, [])], ["a"], [1.0])
    with pytest.raises(ValueError, match="a reward for each"):
        inheritance([], ["a"], [])
