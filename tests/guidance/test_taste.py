"""A user's taste: the posterior against a grid, its coverage, what to ask next, the preset."""

import functools
import itertools

import numpy as np
import pytest
from pydantic import ValidationError

from trimtab.errors import InvalidGuidance, InvalidRequest
from trimtab.params import GuidanceParams
from trimtab.taste import Candidate, Comparison, Question, gain, learn, pairs_of, posterior
from trimtab.taste.comparisons import FIRST, SECOND, TIE, open_pairs, to_score

LEVEL = 0.9


def chosen(random, weights, differences, ties=0.0):
    """Outcomes of comparisons by Davidson's model."""
    logits = differences @ weights / 2
    odds = np.stack((np.exp(logits), np.exp(-logits), np.full(len(logits), ties)), axis=1)
    odds /= odds.sum(1, keepdims=True)
    return [int(random.choice(3, p=row)) for row in odds]


@pytest.mark.parametrize("ties", [0.0, 1.0])
def test_the_posterior_is_that_of_a_grid(ties):
    random = np.random.default_rng(int(ties))
    differences = random.normal(size=(12, 1 if ties else 2))
    outcomes = chosen(random, np.array([1.5, -1.0][: differences.shape[1]]), differences, ties)
    assert (TIE in outcomes) == bool(ties)
    fitted = posterior.fit(differences, outcomes)
    lines = np.linspace(-9, 9, 360)  # without 0
    grid = np.array(list(itertools.product(lines, lines)))  # both cases have two parameters
    logs = np.zeros(len(grid))
    for x, outcome in zip(differences, outcomes, strict=True):
        d = grid[:, : len(x)] @ x
        parts = [np.exp(d / 2), np.exp(-d / 2), np.exp(grid[:, 1]) if ties else 0 * d]
        logs += np.log(parts[outcome] / sum(parts))
    scales = np.array([posterior.PRIOR, posterior.TIE_PRIOR if ties else posterior.PRIOR])
    logs -= ((grid / scales) ** 2).sum(1) / 2
    mass = np.exp(logs - logs.max())
    mass /= mass.sum()
    mean = mass @ grid
    deviation = np.sqrt(mass @ (grid - mean) ** 2)
    noise = 6 / np.sqrt(fitted.effective)  # in deviations
    assert fitted.effective > 0.2 * posterior.DRAWS
    np.testing.assert_allclose((fitted.mean - mean) / deviation, 0, atol=noise)
    np.testing.assert_allclose(fitted.deviation / deviation, 1, atol=noise)
    for i, (low, high) in enumerate(fitted.interval(LEVEL)):
        below, above = mass[grid[:, i] < low].sum(), mass[grid[:, i] > high].sum()
        assert below == pytest.approx(0.05, abs=0.02)
        assert above == pytest.approx(0.05, abs=0.02)
    np.testing.assert_allclose(fitted.positive(), mass @ (grid > 0), atol=0.02)


def test_with_many_comparisons_it_is_laplaces():
    random = np.random.default_rng(0)
    differences = random.normal(size=(800, 3))
    outcomes = chosen(random, np.array([1.0, -0.5, 0.0]), differences)
    fitted = posterior.fit(differences, outcomes, draws=2048)
    width = np.diff(fitted.laplace(LEVEL))
    apart = (fitted.interval(LEVEL) - fitted.laplace(LEVEL)) / width
    np.testing.assert_allclose(apart, 0, atol=0.06)
    few = posterior.fit(differences[:6], outcomes[:6], draws=2048)
    off = (few.interval(LEVEL) - few.laplace(LEVEL)) / np.diff(few.laplace(LEVEL))
    assert np.abs(off).max() > 0.06  # the control: with few, the posterior is skewed


USERS = 100


@functools.cache
def distances(ties):
    """Of each planted weight to the middle of its interval, in halves of it: [users, scorers]."""
    random = np.random.default_rng(7)
    rows = []
    for seed in range(USERS):
        weights = random.normal(0, posterior.PRIOR, 3)
        nu = float(np.exp(random.normal(0, posterior.TIE_PRIOR))) if ties else 0.0
        differences = random.normal(size=(30, 3))
        outcomes = chosen(random, weights, differences, nu)
        fitted = posterior.fit(differences, outcomes, draws=1024, seed=seed)
        low, high = fitted.interval(LEVEL)[:3].T
        rows.append(np.abs(weights - (low + high) / 2) / ((high - low) / 2))
    return np.array(rows)


def coverage(ties, size=1.0):
    """Share of planted weights in intervals of `size` times their width, and its standard error."""
    inside = (distances(ties) <= size).mean(1)
    return inside.mean(), inside.std(ddof=1) / np.sqrt(USERS)


@pytest.mark.parametrize("ties", [False, True])
def test_intervals_cover_at_their_level(ties):
    """30 comparisons of three scorers by users from the prior; benchmarks/taste.py has more."""
    share, error = coverage(ties)
    assert error < 0.025
    assert abs(share - LEVEL) < 3 * error


def test_too_narrow_intervals_would_be_noticed():
    share, error = coverage(False, size=0.7)
    assert LEVEL - share > 3 * error


def test_the_gain_is_the_mutual_information():
    random = np.random.default_rng(3)
    differences = random.normal(size=(8, 2))
    fitted = posterior.fit(differences, [FIRST, SECOND, TIE, FIRST] * 2)
    pairs = np.array([[0.0, 0.0], [1.0, -1.0], [6.0, 1.0], [-1.0, 1.0]])
    gains, firsts = gain.expected_gain(fitted, pairs)
    for x, own, first in zip(pairs, gains, firsts, strict=True):
        d, nu = fitted.draws[:, :2] @ x, np.exp(fitted.draws[:, 2])
        parts = np.stack((np.exp(d / 2), np.exp(-d / 2), nu), axis=1)
        odds = parts / parts.sum(1, keepdims=True)
        mean = fitted.shares @ odds
        information = fitted.shares @ (odds * np.log(odds / mean)).sum(1)
        assert own == pytest.approx(information, abs=0.02)
        assert first == pytest.approx(mean[0], abs=0.02)
    assert gains[1] == pytest.approx(gains[3], abs=0.02)
    none = posterior.fit(differences, [FIRST] * 8)
    assert gain.expected_gain(none, np.zeros((1, 2)))[0] == pytest.approx([0.0], abs=1e-9)


def user(weights, n, seed=0, scale=(1.0, 1.0)):
    """Comparisons by a user of weights a deviation, and scores of scorers a and b."""
    random = np.random.default_rng(seed)
    comparisons, scores = [], {}
    for i in range(n):
        question = Question(f"q{i}")
        values = random.normal(size=(2, 2))
        difference = float((values[0] - values[1]) @ weights)
        first = random.random() < 1 / (1 + np.exp(-difference))
        answers = [f"a{i}", f"b{i}"]
        comparisons.append(
            Comparison(prompt=f"q{i}", answers=answers, choice=FIRST if first else SECOND)
        )
        for answer, value in zip(answers, values, strict=True):
            scores[question, answer] = dict(zip("ab", value * scale, strict=True))
    return comparisons, scores


def test_the_preset_has_the_users_weights():
    comparisons, scores = user((2.0, -1.0), 150)
    fitted = learn(comparisons, [], scores, {"a": 1.0, "b": 1.0}, {"kl_budget": 2.0})
    for name, weight in (("a", 2.0), ("b", -1.0)):
        one = fitted.fields["weights"][name]
        low, high = one["interval"]
        assert low < one["mean"] < high
        assert high - low < 1.8
        assert abs(one["mean"] - weight) < 3 * one["deviation"]
        assert fitted.guidance["scorers"][name] == pytest.approx(
            fitted.fields["weights"][name]["mean"], rel=1e-3
        )
    assert fitted.fields["undecided"] == []
    params = GuidanceParams.parse(fitted.guidance)
    assert (params.kl_budget, params.normalize) == (2.0, True)
    beta = learn(comparisons, [], scores, {"a": 1.0, "b": 1.0}, {"beta": 0.5})
    assert GuidanceParams.parse(beta.guidance).beta == 0.5


def test_units_of_scores_do_not_matter():
    comparisons, scores = user((2.0, -1.0), 30)
    plain = learn(comparisons, [], scores, {"a": 1.0, "b": 1.0}, {"beta": 1.0})
    comparisons, scores = user((2.0, -1.0), 30, scale=(1000.0, 1e-3))
    known = learn(comparisons, [], scores, {"a": 1000.0, "b": 1e-3}, {"beta": 1.0})
    unknown = learn(comparisons, [], scores, {"a": 1.0, "b": 1e-3}, {"beta": 1.0})
    for name in "ab":
        own = plain.fields["weights"][name]["mean"]
        assert known.fields["weights"][name]["mean"] == pytest.approx(own)
        factor = 1e-3 if name == "a" else 1.0
        assert unknown.fields["weights"][name]["mean"] == pytest.approx(own * factor)


def test_a_scorer_that_tells_nothing_gets_no_weight():
    comparisons, scores = user((2.0, 0.0), 20)
    scores = {key: {"a": one["a"], "b": 5.0} for key, one in scores.items()}
    fitted = learn(comparisons, [], scores, {"a": 1.0, "b": 1.0}, {"beta": 1.0})
    assert fitted.guidance["scorers"]["b"] == 0
    assert fitted.fields["undecided"] == ["b"]
    flat = {key: {"a": 1.0, "b": 5.0} for key in scores}
    with pytest.raises(InvalidRequest, match="no scorer tells"):
        learn(comparisons, [], flat, {"a": 1.0, "b": 1.0}, {"beta": 1.0})
    tiny = {key: {"a": one["a"] * 1e-5, "b": 1.0} for key, one in scores.items()}
    with pytest.raises(InvalidRequest, match="'a' is more than 1000"):
        learn(comparisons, [], tiny, {"a": 1.0, "b": 1.0}, {"beta": 1.0})
    with pytest.raises(InvalidGuidance):
        learn(comparisons, [], scores, {"a": 1.0, "b": 1.0}, {"beta": 1e9})


def test_what_to_ask_next():
    comparisons, scores = user((2.0, -1.0), 10)
    question = Question("new")
    values = {"same": (0.0, 0.0), "same too": (0.0, 0.0), "apart": (0.0, 2.0)}
    scores |= {(question, a): dict(zip("ab", v, strict=True)) for a, v in values.items()}
    candidates = [Candidate(prompt="new", answers=list(values))]
    fitted = learn(comparisons, candidates, scores, {"a": 1.0, "b": 1.0}, {"beta": 1.0})
    asking = fitted.fields["ask"]
    assert [one["prompt"] for one in asking] == ["new"] * 3
    gains = [one["gain"] for one in asking]
    assert gains == sorted(gains, reverse=True)
    assert asking[-1]["answers"] == ["same", "same too"]
    assert asking[-1]["gain"] == pytest.approx(0, abs=1e-9)
    assert asking[0]["gain"] > 0.01


def test_pairs_at_hand_are_those_not_yet_compared():
    def compared(a, b):
        return Comparison(prompt="q", chosen=a, rejected=b)

    rows = [compared("x", "y"), compared("y", "z"), compared("z", "u")]
    others = {frozenset((p.first, p.second)) for p in open_pairs(rows, [])}
    assert others == {frozenset("xz"), frozenset("xu"), frozenset("yu")}
    offered = [Candidate(prompt="q", answers=["y", "x", "w"])]
    others = {frozenset((p.first, p.second)) for p in open_pairs(rows, offered)}
    assert others == {frozenset("yw"), frozenset("xw")}
    [(question, answers)] = to_score(pairs_of(rows, offered)).items()
    assert (question, set(answers)) == (Question("q"), set("xyzuw"))


CHAT = {"messages": [{"role": "user", "content": "q"}]}


def test_the_forms_of_a_comparison():
    one = Comparison(prompt="q", answers=["a", "b"], choice="tie")
    assert (one.outcome, one.pair) == (TIE, ("a", "b"))
    assert Comparison(**CHAT, answers=["a", "b"], choice=1).outcome == SECOND
    named = Comparison(**CHAT, chosen="a", rejected="b")
    assert (named.outcome, named.pair) == (FIRST, ("a", "b"))
    assert named.question.messages() == CHAT["messages"]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"prompt": "q"},
        {"chosen": "a", "rejected": "b"},
        {"prompt": "q", **CHAT, "chosen": "a", "rejected": "b"},
        {"prompt": "", "chosen": "a", "rejected": "b"},
        {"prompt": "q", "chosen": "a"},
        {"prompt": "q", "chosen": "a", "rejected": "a"},
        {"prompt": "q", "chosen": "a", "rejected": ""},
        {"prompt": "q", "chosen": "a", "rejected": "b", "choice": 0},
        {"prompt": "q", "answers": ["a", "b"]},
        {"prompt": "q", "answers": ["a", "b", "c"], "choice": 0},
        {"prompt": "q", "answers": ["a"], "choice": 0},
        {"prompt": "q", "answers": ["a", "b"], "choice": 2},
        {"prompt": "q", "answers": ["a", "b"], "choice": True},
        {"prompt": "q", "answers": ["a", "b"], "choice": "both"},
        {"prompt": "q", "answers": ["a", 5], "choice": 0},
        {"messages": [], "chosen": "a", "rejected": "b"},
        {"messages": [{"role": "user"}], "chosen": "a", "rejected": "b"},
        {"prompt": "q", "chosen": "a", "rejected": "b", "weight": 2},
    ],
)
def test_other_forms_are_refused(fields):
    with pytest.raises(ValidationError):
        Comparison.model_validate(fields)
