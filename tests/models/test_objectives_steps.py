"""Rewards before the end: targets and what is learnt, against the exact dynamic programme."""

from functools import cache

import pytest
import torch
from torch import Tensor

from recovery import distance, fit
from test_objectives_values import random_rollouts
from trimtab_lab.worlds.tiny import (
    VOCABULARY,
    Prefix,
    Tiny,
    ended,
    reward,
    step_reward,
)
from trimtab_models.objectives import OBJECTIVES
from trimtab_models.objectives.distribution import Distribution
from trimtab_models.objectives.returns import returns_to_go
from trimtab_models.objectives.td_lambda import TdLambda
from trimtab_models.rows import Rollout, pad, remaining


@pytest.fixture(scope="module")
def world() -> Tiny:
    return Tiny().stepwise()


def programme(world: Tiny, eta: float | None = None) -> Tensor:
    """The exact return to go of every state, its last token's own reward included: [states].

    Backwards from the ends: r(s) + Σ_v π0(v | s) · value(s + v), or η·log Σ π0·exp(value/η).
    """
    chances = dict(zip(world.states, world.at(world.log_pi0).exp(), strict=True))

    @cache
    def value(x: Prefix, y: Prefix) -> float:
        own = step_reward(x, y) if y else 0.0
        if ended(y):
            return own + reward(x, y)
        nexts = torch.tensor([value(x, (*y, v)) for v in range(VOCABULARY)]).double()
        if eta is None:
            return own + float(chances[x, y] @ nexts)
        return own + eta * float((nexts / eta + chances[x, y].log()).logsumexp(0))

    return world.table(value)


def _states(world: Tiny, exact: Tensor, shift: int) -> Tensor:
    """The states' values, at the tokens of every answer: [finals, steps]; 0 after its end."""
    values = dict(zip(world.states, exact.tolist(), strict=True))
    steps = world.rows.mask().shape[1]
    table = [
        [values[x, y[: t + shift]] if t < len(y) else 0.0 for t in range(steps)]
        for x, y in world.finals
    ]
    return torch.tensor(table).double()


def _mean(world: Tiny, targets: Tensor) -> Tensor:
    """E[target | y^{1:t}] of every state with a token, [states]; 0 for the empty prefixes."""

    def mean(x: Prefix, y: Prefix) -> float:
        under = world._under[x, y]
        weights = world.probabilities[under]
        return float(weights @ targets[under, len(y) - 1] / weights.sum()) if y else 0.0

    return world.table(mean)


def _tokens(world: Tiny) -> Tensor:
    return world.where(lambda x, y: len(y) > 0)


@pytest.mark.parametrize("decay", [0.0, 0.6, 1.0])
def test_targets_are_the_exact_return_to_go_on_average(world: Tiny, decay: float) -> None:
    exact, where = programme(world), _tokens(world)
    after = returns_to_go(_states(world, exact, 1), world.rows, decay)
    torch.testing.assert_close(_mean(world, after)[where], exact[where], atol=1e-6, rtol=0)
    # Values before a token have no own reward; their targets are those of the token.
    own = world.table(lambda x, y: step_reward(x, y) if y else 0.0)
    before = returns_to_go(_states(world, exact - own, 0), world.rows, decay, before=True)
    torch.testing.assert_close(_mean(world, before)[where], exact[where], atol=1e-6, rtol=0)
    # The control: values without the reward of their own token are others.
    assert (exact - own - exact).abs()[where].max() > 0.3


def test_by_hand() -> None:
    one = Rollout([7, 7], [1, 2, 3], 2.0, step_rewards=(0.5, 0.25, 0.0))
    outputs = torch.tensor([[90.0, 90.0, 1.0, 2.0, 3.0]])[..., None]
    # G_3 = 2 − 0.75, and no value of the ended answer; G_2 = 0.25 + G_3; G_1 = 0.5 + ½·2 + ½·G_2.
    targets = (2.25, 1.5, 1.25)
    expected = sum((v - g) ** 2 for v, g in zip((1, 2, 3), targets, strict=True)) / 3
    objective = TdLambda(0.5)
    assert objective.loss(outputs, objective.collate([one], 0)).item() == pytest.approx(expected)


@pytest.mark.parametrize("decay", [0.0, 0.4, 1.0])
def test_against_loops(decay: float) -> None:
    rollouts = [
        one._replace(step_rewards=torch.randn(len(one.completion)).tolist())
        for one in random_rollouts(3)
    ]
    rows = pad(rollouts, 0)
    for before in (False, True):
        values = torch.randn(rows.mask().shape)
        targets = returns_to_go(values, rows, decay, before=before)
        for row, one in enumerate(rollouts):
            last = len(one.completion) - 1
            known = one.label - sum(one.step_rewards[:last])
            for t in range(last, -1, -1):
                if t < last:
                    ends = t + 1 == last and not before
                    value = known if ends else float(values[row, t + 1])
                    later = (1 - decay) * value + decay * known
                    known = one.step_rewards[t] + later
                assert float(targets[row, t]) == pytest.approx(known, abs=1e-5)


def test_without_steps_nothing_changes() -> None:
    rows = pad(random_rollouts(4), 0)
    assert torch.equal(rows.to_go(), rows.labels[:, None].expand_as(rows.to_go()))


LEARNT = {
    "td-lambda": {},
    "rad": {},
    "q-sampled": {},
    "value-advantage": {},
    "gains": {"discount": 1.0},
    "soft-td": {"eta": 0.7},
    "distribution": {"support": (-3.0, 3.0), "bins": 25},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNT)
def test_what_is_learnt_is_the_return_to_go(world: Tiny, name: str) -> None:
    objective = OBJECTIVES[name](**LEARNT[name])
    learnt, where = fit(world, objective, steps=300), _tokens(world)
    exact = programme(world, LEARNT[name].get("eta"))
    if name == "gains":  # which adds the reward so far
        assert not objective.to_go
        exact, learnt = world.table(world.value), learnt.sum(-1)
    elif name == "distribution":
        learnt = learnt.softmax(-1) @ torch.linspace(-3, 3, 25).double()
    elif name == "rad":  # its mean gives more weight to answers that end soon
        weights = world.rows.completions.double()
        weights = world.probabilities * 2 / (weights * (weights + 1))
        to_go = torch.tensor([[*remaining(one), *[0.0] * 4][:4] for one in world.rollouts])

        def mean(x: Prefix, y: Prefix) -> float:
            under = world._under[x, y]
            own = weights[under]
            return float(own @ to_go[under, len(y) - 1].double() / own.sum()) if y else 0.0

        exact = world.table(mean)
    else:
        learnt = objective.combine(learnt)
    if objective.head in ("vocabulary", "vocabulary+value"):
        number = {state: i for i, state in enumerate(world.states)}
        before = torch.tensor([number[x, y[:-1]] for x, y in world.states])
        tokens = torch.tensor([y[-1] if y else 0 for _, y in world.states])
        learnt = learnt[before, tokens]
    else:
        learnt = learnt.reshape(len(exact), -1)[:, 0] if learnt.dim() > 1 else learnt
    assert distance(world, learnt, exact, where) < 0.06
    assert distance(world, 0 * exact, exact, where) > 0.3


def test_a_histogram_cannot_be_shifted_between_bins() -> None:
    one = Rollout([1], [2, 3], 1.0, step_rewards=(0.5, 0.0))
    with pytest.raises(ValueError, match="decay 1"):
        Distribution(decay=0.5).collate([one], 0)
    assert Distribution().collate([one], 0).to_go().tolist() == [[1.0, 0.5]]
    with pytest.raises(ValueError, match=r"reward 1.5 is outside the support"):
        Distribution().collate([one._replace(step_rewards=(-0.5, 0.0))], 0)


def test_gains_reads_the_sum_so_far() -> None:
    one = Rollout([1], [2, 3, 4], 2.0, step_rewards=(0.5, 0.25, 0.0))
    rows = OBJECTIVES["gains"]().collate([one], 0)
    assert rows.prefix_rewards.tolist() == [[0.5, 0.75, 2.0]]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_each_objective_says_what_it_learns(name: str) -> None:
    whole = {"gains", "fudge", "ilql"}
    objective = OBJECTIVES[name]()
    assert objective.to_go == (objective.data == "rollouts" and name not in whole)
