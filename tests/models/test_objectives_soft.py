"""Soft values and return distributions: by hand, against loops, and where gradients stop."""

import math
from typing import Any

import pytest
import torch

from test_objectives_values import prefixes, random_outputs, random_rollouts
from trimtab_models.networks import LIKELY
from trimtab_models.objectives import OBJECTIVES
from trimtab_models.objectives.distribution import Distribution, QDistribution, two_hot
from trimtab_models.objectives.soft_value import SoftValue
from trimtab_models.rows import Rollout

# Values after each of three tokens are 1, 2, 3; what stands elsewhere must not matter.
ONE = [Rollout([7, 7], [1, 2, 3], 1.5)]
SCORES = torch.tensor([[90.0, 90.0, 1.0, 2.0, 3.0]])[..., None]


def _linex(error: float, eta: float) -> float:
    return eta**2 * (math.exp(error / eta) - error / eta - 1)


def test_soft_value_by_hand() -> None:
    objective = SoftValue(eta=0.5)
    loss = objective.loss(SCORES, objective.collate(ONE, 0)).item()
    expected = sum(_linex(1.5 - v, 0.5) for v in (1, 2, 3)) / 3
    assert loss == pytest.approx(expected, rel=1e-5)


def test_soft_td_by_hand() -> None:
    objective = OBJECTIVES["soft-td"](eta=0.5)
    loss = objective.loss(SCORES, objective.collate(ONE, 0)).item()
    expected = sum(_linex(error, 0.5) for error in (2 - 1, 1.5 - 2, 1.5 - 3)) / 3
    assert loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("eta", [0.5, -2.0, 10.0])
@pytest.mark.parametrize("decay", [0.0, 0.6, 1.0])
def test_soft_returns_against_the_recursion(decay: float, eta: float) -> None:
    objective = SoftValue(eta, decay)
    rollouts = random_rollouts(4)
    rows = objective.collate(rollouts, 0)
    outputs = random_outputs(rows, 1, 4)
    terms = []
    for rollout, values in zip(rollouts, outputs, strict=True):
        scores = prefixes(rollout, values)
        scores[-1], own = rollout.label, [*scores]
        mixed = math.exp(rollout.label / eta)
        terms.append(_linex(rollout.label - own[-1], eta))
        for t in reversed(range(len(scores) - 1)):
            mixed = (1 - decay) * math.exp(scores[t + 1] / eta) + decay * mixed
            terms.append(_linex(eta * math.log(mixed) - own[t], eta))
    assert objective.loss(outputs, rows).item() == pytest.approx(sum(terms) / len(terms), rel=1e-4)


def test_its_minimum_is_the_soft_value_whatever_the_scale() -> None:
    rewards = (-3.0, 0.0, 2.0)  # as likely as each other
    for eta in (0.4, 1.0, -1.0, 100.0):
        objective = SoftValue(eta)
        rows = objective.collate([Rollout([1], [2], reward) for reward in rewards], 0)
        exact = eta * math.log(sum(math.exp(r / eta) for r in rewards) / 3)
        value = torch.full((3, 2, 1), exact, requires_grad=True)
        objective.loss(value, rows).backward()
        assert value.grad is not None
        assert value.grad.sum().item() == pytest.approx(0, abs=1e-3)
    # Great η: half the squared error.
    assert objective.loss(torch.zeros(3, 2, 1), rows).item() == pytest.approx(13 / 6, rel=0.02)


def test_past_the_clip_the_loss_is_the_tangent() -> None:
    objective = SoftValue(eta=0.01)
    rows = objective.collate([Rollout([1], [2], 5.0)], 0)
    value = torch.zeros(1, 2, 1, requires_grad=True)
    loss = objective.loss(value, rows)  # z = 500, exp(500) would be infinite
    loss.backward()
    assert value.grad is not None
    assert loss.item() == pytest.approx(1e-4 * (math.exp(7) * (1 + 493) - 501), rel=1e-5)
    assert value.grad[0, 1, 0].item() == pytest.approx(-0.01 * (math.exp(7) - 1), rel=1e-5)


def test_soft_targets_far_apart_stay_finite() -> None:
    objective = SoftValue(eta=0.001, decay=0.5)
    rows = objective.collate(ONE, 0)
    assert objective.loss(SCORES, rows).isfinite()


@pytest.mark.parametrize("name", ["soft-td", "distribution-td"])
def test_td_targets_carry_no_gradient(name: str) -> None:
    options: dict[str, Any] = {"bins": 3} if name == "distribution-td" else {}
    objective = OBJECTIVES[name](**options)
    rows = objective.collate([Rollout([7], [1, 2, 3], 0.5)], 0)
    outputs = random_outputs(rows, options.get("bins", 1), 0).requires_grad_()
    (grad,) = torch.autograd.grad(objective.loss(outputs, rows), outputs)
    full = OBJECTIVES[name](**options, decay=1.0)
    (own,) = torch.autograd.grad(full.loss(outputs, rows), outputs)
    # The second prefix is the first one's target, yet moves by its own error alone, which is to
    # the reward, as with λ = 1.
    assert torch.allclose(grad[:, 2:], own[:, 2:])
    assert grad[:, 2:].abs().max() > 0.01
    assert not torch.allclose(grad[:, 1], own[:, 1])


def test_two_hot_by_hand() -> None:
    # Bins at −1, 0, 1: a quarter of the way from 0 to 1, an end, a bin itself.
    assert two_hot(torch.tensor([0.25, 1.0, 0.0]), (-1.0, 1.0), 3).tolist() == [
        [0, 0.75, 0.25],
        [0, 0, 1],
        [0, 1, 0],
    ]


@pytest.mark.parametrize("seed", range(3))
def test_two_hot_against_a_search(seed: int) -> None:
    rewards = torch.rand(20, generator=torch.Generator().manual_seed(seed)) * 5 - 2
    bins = torch.linspace(-2, 3, 8)
    for reward, histogram in zip(rewards, two_hot(rewards, (-2.0, 3.0), 8), strict=True):
        above = int((bins < reward).sum())
        share = float((reward - bins[above - 1]) / (bins[above] - bins[above - 1]))
        expected = [0.0] * 8
        expected[above - 1], expected[above] = 1 - share, share
        assert histogram.tolist() == pytest.approx(expected, abs=1e-5)


def test_distribution_by_hand() -> None:
    objective = Distribution((-1.0, 1.0), bins=3)
    p = torch.tensor([[[0.1, 0.2, 0.7], [0.25, 0.25, 0.5], [0.6, 0.3, 0.1]]])
    loss = objective.loss(p.log() + 5, objective.collate([Rollout([7], [1, 2], 0.25)], 0))
    first, second = (-0.75 * math.log(b) - 0.25 * math.log(c) for b, c in ((0.25, 0.5), (0.3, 0.1)))
    assert loss.item() == pytest.approx((first + second) / 2, rel=1e-5)
    assert objective.info() == {"is_value": True, "support": (-1.0, 1.0)}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("decay", [0.0, 0.7, 1.0])
def test_distribution_against_loops(decay: float, seed: int) -> None:
    objective = Distribution((-5, 5), bins=6, decay=decay)
    rollouts = random_rollouts(seed)
    rows = objective.collate(rollouts, 0)
    outputs = random_outputs(rows, 6, seed)
    terms = []
    for rollout, logits in zip(rollouts, outputs, strict=True):
        start, end = len(rollout.prompt), len(rollout.prompt) + len(rollout.completion)
        histograms = logits[start:end].softmax(-1)
        target = last = two_hot(torch.tensor(rollout.label), (-5, 5), 6)
        for t in reversed(range(end - start)):
            if t < end - start - 1:
                ahead = last if t == end - start - 2 else histograms[t + 1]
                target = (1 - decay) * ahead + decay * target
            terms.append(-float(target @ histograms[t].log()))
    assert objective.loss(outputs, rows).item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)


@pytest.mark.parametrize("decay", [0.0, 0.7, 1.0])
def test_a_q_distribution_reads_the_rows_of_the_token_that_came(decay: float) -> None:
    """The loss of a distribution head that says after each token what this one says before it."""
    rows = Distribution((-5, 5), bins=3).collate(random_rollouts(1), 0)
    vocab = int(rows.input_ids.max()) + 1
    outputs = random_outputs(rows, vocab * 4, 1)
    after = torch.zeros(*outputs.shape[:2], 3)
    for row, ids in enumerate(rows.input_ids.tolist()):
        for t, token in enumerate(ids[1:], 1):
            log_q = outputs[row, t - 1, 3::4].log_softmax(-1)[token]
            slopes = LIKELY * torch.tensor([0, 0.5, 1])
            after[row, t] = outputs[row, t - 1, 4 * token : 4 * token + 3] + log_q * slopes
    objective = QDistribution((-5, 5), bins=3, decay=decay)
    expected = Distribution((-5, 5), bins=3, decay=decay).loss(after, rows)
    assert objective.loss(outputs, rows).item() == pytest.approx(expected.item(), rel=1e-5)
    assert objective.info() == {"is_value": True, "support": (-5, 5), "ahead": True}
    assert objective.name.startswith("Q return distribution")


@pytest.mark.parametrize("reward", [1.1, -3.0, math.nan])
def test_a_reward_outside_the_support_is_refused(reward: float) -> None:
    with pytest.raises(ValueError, match=r"outside the support .* -1 to 1; set support"):
        Distribution().collate([Rollout([1], [2], 0.0), Rollout([1], [2], reward)], 0)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("soft-value", {"eta": 0.0}, "eta"),
        ("soft-value", {"clip": 0.0}, "clip"),
        ("soft-td", {"decay": -0.1}, "λ"),
        ("distribution", {"support": (1.0, 1.0)}, "support"),
        ("distribution", {"support": (0.0, 1.0, 2.0)}, "support"),
        ("distribution", {"bins": 1}, "bins"),
        ("distribution-td", {"decay": 2.0}, "λ"),
    ],
)
def test_options_outside_are_refused(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        OBJECTIVES[name](**options)
