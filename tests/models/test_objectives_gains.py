"""Gains: by hand, against loops, what it learns, and the one score that its outputs become."""

import copy
import random

import pytest
import torch

from recovery import distance, fit
from test_objectives_values import random_outputs, random_rollouts
from trimtab_lab.worlds.tiny import EOS, VOCABULARY, Tiny, config
from trimtab_models import networks
from trimtab_models.objectives.gains import Gains
from trimtab_models.probe import Probe, ProbeConfig
from trimtab_models.rows import Rollout
from trimtab_models.training import probes


def _known(rollouts: list[Rollout], seed: int) -> list[Rollout]:
    """The rollouts with random rewards of their prefixes."""
    draw = random.Random(seed)
    return [
        one._replace(prefix_rewards=[*(draw.gauss(0, 1) for _ in one.completion[1:]), one.label])
        for one in rollouts
    ]


def test_by_hand() -> None:
    one = Rollout([7, 7], [1, 2], 1.0, prefix_rewards=[0.5, 1.0])
    # Outputs (q, b) after each token; 90 stands where nothing may look.
    outputs = torch.tensor([[[90.0, 90.0], [90.0, 90.0], [0.2, 0.1], [0.3, 0.4]]])
    # G_2 = 1 − 0.5, G_1 = 0.5 + 0.5·(0.5·q_2 + 0.5·G_2).
    targets = (0.5 + 0.5 * (0.5 * 0.3 + 0.5 * 0.5), 0.5)
    expected = ((0.2 - targets[0]) ** 2 + 0.1**2 + (0.3 - targets[1]) ** 2 + (0.4 - 0.5) ** 2) / 2
    objective = Gains(discount=0.5, decay=0.5)
    assert objective.loss(outputs, objective.collate([one], 0)).item() == pytest.approx(expected)


@pytest.mark.parametrize(("discount", "decay"), [(0.9, 1.0), (0.7, 0.4), (1.0, 0.0), (0.0, 1.0)])
def test_against_loops(discount: float, decay: float) -> None:
    rollouts = _known(random_rollouts(1), 1)
    objective = Gains(discount, decay)
    rows = objective.collate(rollouts, 0)
    outputs = random_outputs(rows, 2, 1)
    errors = []
    for row, one in enumerate(rollouts):
        after = [outputs[row, len(one.prompt) + t].tolist() for t in range(len(one.completion))]
        known = [0.0, *one.prefix_rewards]
        q_next = target = 0.0
        for t in range(len(after) - 1, -1, -1):
            later = (1 - decay) * q_next + decay * target
            target = known[t + 1] - known[t] + discount * later
            q_next = after[t][0]
            errors.append((q_next - target) ** 2 + (after[t][1] - known[t]) ** 2)
    assert objective.loss(outputs, rows).item() == pytest.approx(
        sum(errors) / len(errors), rel=1e-5
    )


@pytest.mark.slow
def test_without_a_discount_its_score_is_the_mean_reward() -> None:
    world = copy.copy(Tiny())
    objective = Gains(discount=1.0)
    assert objective.info() == {"is_value": True}
    world.rows = objective.collate(_prefix_rewards(world.rollouts), EOS)
    learnt = fit(world, objective, steps=300).sum(-1)
    exact, where = world.table(world.value), world.where(lambda x, y: len(y) > 0)
    assert distance(world, learnt, exact, where) < 0.05
    assert distance(world, 0 * exact, exact, where) > 0.2


def _prefix_rewards(rollouts: list[Rollout]) -> list[Rollout]:
    """Rewards of prefixes that are a fixed, arbitrary function of their tokens."""

    def potential(prefix: list[int]) -> float:
        return random.Random(repr(prefix)).gauss(0, 1)

    return [
        one._replace(
            prefix_rewards=[
                *(potential(one.completion[: t + 1]) for t in range(len(one.completion) - 1)),
                one.label,
            ]
        )
        for one in rollouts
    ]


def test_an_answer_without_the_rewards_of_its_prefixes_is_refused() -> None:
    whole, lacking = Rollout([1], [2], 0.5, prefix_rewards=[0.5]), Rollout([1], [2], 0.5)
    with pytest.raises(ValueError, match="--prefix-rewards"):
        Gains().collate([whole, lacking], 0)
    assert not Gains().info()["is_value"]
    with pytest.raises(ValueError, match="discount"):
        Gains(discount=1.5)


def test_the_outputs_of_a_network_become_one() -> None:
    torch.manual_seed(0)
    model = networks.build("scalars", config())
    ids = torch.randint(VOCABULARY, (3, 7))
    expected = model(input_ids=ids).logits.sum(-1, keepdim=True)
    torch.testing.assert_close(networks.add_up(model)(input_ids=ids).logits, expected)
    assert model.config.num_labels == 1


def test_a_probe_tells_what_was_gained_by_the_state_alone() -> None:
    torch.manual_seed(0)
    model = Probe(ProbeConfig(hidden_size=5, rank=3, width=4, outputs=2))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    model.factors.weight.data[3:] = 0  # of the second output: never trained, so still 0
    model.factors.bias.data[3:] = 0
    states, embedding = torch.randn(9, 2, 5), torch.randn(6, 5)
    table = model.table(embedding)
    both = model.every(states, table)  # [9, 6, 2]
    assert torch.equal(both[..., 1], both[:, :1, 1].expand(-1, 6))
    one = probes.add_up(model)
    assert one.config.outputs == 1
    torch.testing.assert_close(one.every(states, one.table(embedding))[..., 0], both.sum(-1))
