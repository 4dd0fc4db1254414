"""In the enumerable world each value objective finds its own exact limit.

First a scorer without limits, a free number for every state and output, so that nothing but the
loss decides where it ends; then networks, as far as a quick training brings them. Errors are root
mean squares weighted by how often the base comes to a state, and takes a token there.

The limits: V^π0 for TD(λ) at every λ; Q^π0 for all Q heads, whatever the backup; P(attribute) for
FUDGE; for RAD not V^π0 but a mean that favours short answers, see rad.py; for ILQL Q − V of
expectiles, at τ = ½ those of π0.
"""

import copy
import math
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from recovery import distance, fit, outputs, train
from trimtab_lab.arena.exact import optimum
from trimtab_lab.worlds.tiny import EOS, PROMPTS, VOCABULARY, Prefix, Tiny, ended
from trimtab_models import networks
from trimtab_models.objectives import OBJECTIVES
from trimtab_models.objectives.distribution import Distribution, two_hot
from trimtab_models.objectives.ilql import Ilql

pytestmark = pytest.mark.slow  # trains

TOLERANCE = 0.02
NETWORK_TOLERANCE = 0.2
NOTHING = 0.3  # what a scorer misses V and Q by that says 0 everywhere, at the least
ETA = 0.5


@pytest.fixture(scope="module")
def world() -> Tiny:
    torch.set_num_threads(1)
    return Tiny()


def _of_objective(world: Tiny, objective: Any) -> Tiny:
    """The same world with the labels that the objective reads."""
    seen = copy.copy(world)
    seen.rows = objective.collate(world.rollouts, EOS)
    return seen


def _prefixes(world: Tiny) -> Tensor:
    return world.where(lambda x, y: len(y) > 0)


def _open(world: Tiny) -> Tensor:
    return world.where(lambda x, y: not ended(y))


def _q(world: Tiny) -> Tensor:
    """Q^π0, [states, vocab]; zeros once an answer has ended."""
    return world.table(lambda x, y: torch.zeros(VOCABULARY) if ended(y) else world.q(x, y))


def _q_distance(world: Tiny, learnt: Tensor, exact: Tensor) -> float:
    chances = world.at(world.log_pi0).exp() * world.table(world.reach)[:, None]
    weights = chances[_open(world)]
    errors = (learnt - exact)[_open(world)].square()
    return float(((errors * weights).sum() / weights.sum()).sqrt())


def _rad(world: Tiny, prompt: Prefix, prefix: Prefix) -> float:
    under = world._under[prompt, prefix]
    lengths = world.rows.completions[under].double()
    weights = world.probabilities[under] / (lengths * (lengths + 1) / 2)
    return float(weights @ world.rewards[under] / weights.sum())


@pytest.mark.parametrize("name", ["td-lambda", "td-0", "cd-fudge"])
def test_values_find_the_mean_reward(world: Tiny, name: str) -> None:
    exact = world.table(world.value)
    learnt = fit(world, OBJECTIVES[name](), steps=300)[:, 0]
    assert distance(world, learnt, exact, _prefixes(world)) < TOLERANCE
    assert distance(world, 0 * exact, exact, _prefixes(world)) > NOTHING


def test_rad_finds_its_own_mean_and_not_the_value(world: Tiny) -> None:
    learnt = fit(world, OBJECTIVES["rad"](), steps=400)[:, 0]
    exact = world.table(lambda x, y: _rad(world, x, y))
    assert distance(world, learnt, exact, _prefixes(world)) < TOLERANCE / 2
    assert distance(world, learnt, world.table(world.value), _prefixes(world)) > TOLERANCE


def test_fudge_finds_the_probability_of_the_attribute(world: Tiny) -> None:
    objective = OBJECTIVES["fudge"](threshold=0.0)
    learnt = fit(_of_objective(world, objective), objective, steps=300)[:, 0].sigmoid()
    exact = world.table(world.attribute)
    assert distance(world, learnt, exact, _prefixes(world)) < TOLERANCE
    assert distance(world, 0.5 + 0 * exact, exact, _prefixes(world)) > NOTHING


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in ("q-exact", "q-sampled", "cd-q", "dueling-q", "value-advantage")),
        ("q-sampled", {"decay": 0.95}),
        ("dueling-q", {"decay": 0.95, "centred": True}),
    ],
)
def test_q_heads_find_the_mean_reward_after_every_token(
    world: Tiny, name: str, options: dict[str, Any]
) -> None:
    objective, exact = OBJECTIVES[name](**options), _q(world)
    learnt = objective.combine(fit(world, objective, steps=300))
    assert _q_distance(world, learnt, exact) < TOLERANCE
    assert _q_distance(world, 0 * exact, exact) > NOTHING


def test_ilql_finds_advantages_of_the_base_and_of_better_policies(world: Tiny) -> None:
    base = dict(zip(world.states, world.at(world.log_pi0).exp(), strict=True))

    @cache
    def expectile(x: Prefix, y: Prefix, tau: float) -> float:
        """V(s): the τ-expectile of V(s + v) under π0, by its own fixed point."""
        if ended(y):
            return world.value(x, y)
        q = torch.tensor([expectile(x, (*y, v), tau) for v in range(VOCABULARY)]).double()
        value = q.mean()
        for _ in range(200):
            weights = base[x, y] * torch.where(q < value, 1 - tau, tau)
            value = weights @ q / weights.sum()
        return float(value)

    def advantages(x: Prefix, y: Prefix, tau: float) -> Tensor:
        if ended(y):
            return torch.zeros(VOCABULARY)
        nexts = [expectile(x, (*y, v), tau) for v in range(VOCABULARY)]
        return torch.tensor(nexts) - expectile(x, y, tau)

    limits = {tau: world.table(lambda x, y, t=tau: advantages(x, y, t)) for tau in (0.5, 0.9)}
    plain = _q(world) - world.table(world.value)[:, None]
    assert _q_distance(world, limits[0.5], plain) < 1e-6
    for tau, other in ((0.5, 0.9), (0.9, 0.5)):
        objective = Ilql(expectile=tau, conservative=0.0)
        learnt = objective.combine(fit(world, objective, steps=300))
        assert _q_distance(world, learnt, limits[tau]) < TOLERANCE
        assert _q_distance(world, learnt, limits[other]) > 5 * TOLERANCE


def test_the_conservative_term_lowers_what_the_base_rarely_says(world: Tiny) -> None:
    exact, chances = _q(world), world.at(world.log_pi0).exp()
    rare = (chances < 0.05) & _open(world)[:, None] & (world.table(world.reach) > 0.01)[:, None]
    fits = [fit(world, Ilql(0.5, alpha), steps=300)[:, :-1] for alpha in (0.0, 0.5)]
    assert bool(rare.any())
    assert float((fits[1] - fits[0])[rare].max()) < -0.1
    assert float((fits[0] - exact)[rare].abs().mean()) < 0.1


@pytest.mark.parametrize("name", ["soft-value", "soft-td"])
def test_soft_values_find_the_soft_value(world: Tiny, name: str) -> None:
    learnt = fit(world, OBJECTIVES[name](eta=ETA), steps=300)[:, 0]
    exact = world.table(lambda x, y: world.soft_value(x, y, ETA))
    assert distance(world, learnt, exact, _prefixes(world)) < TOLERANCE
    assert distance(world, learnt, world.table(world.value), _prefixes(world)) > 3 * TOLERANCE


@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_distributions_find_the_returns_and_with_them_every_soft_value(
    world: Tiny, decay: float
) -> None:
    objective = Distribution(support=(-1, 1), bins=21, decay=decay)
    learnt = fit(world, objective, steps=400, rate=0.3).softmax(-1)
    prefixes, bins = _prefixes(world), torch.linspace(-1, 1, 21).double()

    def histogram(x: Prefix, y: Prefix) -> Tensor:
        rewards, weights = world.returns(x, y)
        return weights @ two_hot(rewards, (-1, 1), 21)

    exact = world.table(histogram)
    apart = (learnt - exact).abs().sum(-1) / 2  # total variation
    assert distance(world, apart, 0 * apart, prefixes) < 2 * TOLERANCE
    assert distance(world, (1 / 21 - exact).abs().sum(-1) / 2, 0 * apart, prefixes) > 0.5
    for beta in (-4.0, 0.5, 4.0):
        soft = (learnt @ (beta * bins).exp()).log() / beta
        truth = world.table(lambda x, y, b=beta: world.soft_value(x, y, 1 / b))
        assert distance(world, soft, truth, prefixes) < TOLERANCE
        if abs(beta) > 1:
            assert distance(world, soft, world.table(world.value), prefixes) > 5 * TOLERANCE


def _means(logits: Tensor) -> Tensor:
    """Of the histograms of every next token, [states, vocab]."""
    return networks.next_histograms(logits, VOCABULARY).softmax(-1) @ torch.linspace(
        -1, 1, 21, dtype=torch.float64
    )


def test_q_distributions_find_the_mean_reward_after_every_token(world: Tiny) -> None:
    learnt = _means(fit(world, OBJECTIVES["q-distribution"](bins=21), steps=400, rate=0.3))
    assert _q_distance(world, learnt, _q(world)) < TOLERANCE


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("q-distribution", {"bins": 21}),
        ("td-lambda", {}),
        ("q-exact", {}),
        ("dueling-q", {}),
        ("value-advantage", {}),
        ("distribution", {"bins": 21}),
    ],
)
def test_networks_come_near(world: Tiny, name: str, options: dict[str, Any]) -> None:
    objective = OBJECTIVES[name](**options)
    model = train(world, objective, steps=250, items=512)
    if objective.head == "vocabulary+value":
        model = networks.fold(model, objective.combine)
    learnt, values = outputs(world, model), world.table(world.value)
    if objective.head == "distributions":
        learnt = _means(learnt)
    if objective.head.startswith(("vocabulary", "distributions")):
        exact = _q(world)
        error, nothing = (_q_distance(world, q, exact) for q in (learnt, 0 * exact))
    else:
        if name == "distribution":
            learnt = learnt.softmax(-1) @ torch.linspace(-1, 1, 21).double()[:, None]
        scores = (learnt[:, 0], 0 * values)
        error, nothing = (distance(world, score, values, _prefixes(world)) for score in scores)
    assert error < NETWORK_TOLERANCE
    assert nothing > NOTHING


@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_guided_answers_teach_the_histogram_of_the_base(world: Tiny, decay: float) -> None:
    strength, objective = 3.0, Distribution(support=(-1, 1), bins=21, decay=decay)
    guided = copy.copy(world)
    guided.probabilities = optimum(world, strength)[0]
    informed, silent = copy.copy(guided), guided
    informed.rows = world.rows._replace(
        strengths=torch.full_like(world.rows.labels, strength),
        log_ratios=torch.full_like(world.rows.log_ratios, math.nan),  # not known
    )

    def error(seen: Tiny) -> float:
        p = fit(seen, objective, steps=400, rate=0.3).softmax(-1)
        soft = (p @ (strength * torch.linspace(-1, 1, 21).double()).exp()).log() / strength
        truth = world.table(lambda x, y: world.soft_value(x, y, 1 / strength))
        return distance(world, soft, truth, _prefixes(world))

    assert error(informed) < 2 * TOLERANCE
    assert error(silent) > 5 * TOLERANCE


def test_answers_of_a_clumsy_guide_are_weighed(world: Tiny) -> None:
    """Its soft values are off by a nat; what it did to each token tells what its answers weigh."""
    strength, objective = 3.0, Distribution(support=(-1, 1), bins=21)
    noise = torch.randn(len(world.states), generator=torch.Generator().manual_seed(0)).double()
    soft = strength * world.table(lambda x, y: world.soft_value(x, y, 1 / strength)) + noise
    believed = dict(zip(world.states, soft.tolist(), strict=True))
    ratios = torch.zeros_like(world.rows.log_ratios)  # log π/π0 of every token
    for row, (x, y) in enumerate(world.finals):
        for t in range(len(y)):
            log_pi0 = world.log_pi0[row, len(x) + t - 1]
            bonus = torch.tensor([believed[x, (*y[:t], v)] for v in range(VOCABULARY)])
            ratios[row, t] = bonus[y[t]] - (log_pi0 + bonus).logsumexp(0)
    guided = copy.copy(world)
    guided.probabilities = world.probabilities * ratios.sum(1).double().exp()
    assert float(guided.probabilities.sum()) == pytest.approx(len(PROMPTS), abs=1e-5)
    strengths = torch.full_like(world.rows.labels, strength)
    errors = []
    for known in (ratios, torch.full_like(ratios, math.nan)):
        guided.rows = world.rows._replace(strengths=strengths, log_ratios=known)
        p = fit(guided, objective, steps=400, rate=0.3).softmax(-1)
        learnt = (p @ (strength * torch.linspace(-1, 1, 21).double()).exp()).log() / strength
        truth = world.table(lambda x, y: world.soft_value(x, y, 1 / strength))
        errors.append(distance(world, learnt, truth, _prefixes(world)))
    assert errors[0] < 2 * TOLERANCE
    assert errors[1] > 1.5 * errors[0]


def test_what_learns_of_the_base_alone_refuses_guided_answers(world: Tiny) -> None:
    guided = [rollout._replace(strength=2.0) for rollout in world.rollouts[:4]]
    with pytest.raises(ValueError, match="sampled with guidance"):
        OBJECTIVES["td-lambda"]().collate(guided, EOS)
    assert Distribution().collate(guided, EOS).strengths.tolist() == [2.0] * 4
