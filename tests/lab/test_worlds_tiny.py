"""The enumerable world is what it says: exact, consistent, and sampled as it is described."""

import pytest
import torch

from trimtab_lab.worlds.limits import bradley_terry, comparisons
from trimtab_lab.worlds.tiny import EOS, LENGTH, PROMPTS, VOCABULARY, Tiny, ended, reward


@pytest.fixture(scope="module")
def world() -> Tiny:
    return Tiny()


def test_every_completion_once_and_their_probabilities_sum_to_one(world: Tiny) -> None:
    each = len(world.finals) // 2
    assert each == sum(3**n for n in range(LENGTH)) + 3**LENGTH == 121
    assert len(set(world.finals)) == 2 * each
    for prompt in PROMPTS:
        assert world.reach(prompt, ()) == pytest.approx(1, abs=1e-12)
    assert world.probabilities.view(2, -1).max() > 5 / each, "the base should not be uniform"


def test_probabilities_are_those_of_the_network_itself(world: Tiny) -> None:
    (prompt, completion), expected = world.finals[60], world.probabilities[60]
    probability = 1.0
    for t, token in enumerate(completion):
        ids = torch.tensor([[*prompt, *completion[:t]]])
        probability *= world.base(ids).logits[0, -1].softmax(-1)[token].item()
    assert probability == pytest.approx(float(expected), rel=1e-10)


def test_rewards_lie_within_bounds_and_depend_on_what_stands_before(world: Tiny) -> None:
    assert -1 <= world.rewards.min() < -0.7
    assert 0.7 < world.rewards.max() <= 1
    gains = {
        round(reward(x, (*y, 2)) - reward(x, (*y, 1)), 6)
        for x, y in world.states
        if len(y) == LENGTH - 1 and not ended(y)
    }
    assert len(gains) > 3


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_bellman(world: Tiny, eta: float) -> None:
    base = world.at(world.log_pi0)  # [states, vocab]
    for state, log_pi0 in zip(world.states, base, strict=True):
        if ended(state[1]):
            assert world.value(*state) == pytest.approx(reward(*state))
            assert world.soft_value(*state, eta) == pytest.approx(reward(*state))
            continue
        assert world.value(*state) == pytest.approx(float(log_pi0.exp() @ world.q(*state)))
        nexts = [world.soft_value(state[0], (*state[1], v), eta) for v in range(VOCABULARY)]
        soft = eta * torch.logsumexp(log_pi0 + torch.tensor(nexts).double() / eta, 0)
        assert world.soft_value(*state, eta) == pytest.approx(float(soft))
        chances = [world.attribute(state[0], (*state[1], v)) for v in range(VOCABULARY)]
        assert world.attribute(*state) == pytest.approx(
            float(log_pi0.exp() @ torch.tensor(chances).double())
        )


def test_samples_follow_the_base_and_the_judge(world: Tiny) -> None:
    draws = torch.Generator().manual_seed(1)
    drawn = world.draw("rollouts", 100_000, draws)
    seen = torch.bincount(drawn, minlength=len(world.finals)) / 50_000
    assert (seen - world.probabilities).abs().max() < 0.01
    pairs = world.draw("pairs", 100_000, draws, sharpness=2.0).view(-1, 2)
    gaps = (world.rewards[pairs[:, 0]] - world.rewards[pairs[:, 1]]).sign() * 1.0
    better = world.rewards[pairs].max(1).values - world.rewards[pairs].min(1).values
    expected = (2 * torch.sigmoid(2.0 * better) - 1)[better > 0].mean()
    assert float(gaps[better > 0].mean()) == pytest.approx(float(expected), abs=0.01)
    ranked = world.sample("ranked", 3, k=5)
    assert [len(item.completions) for item in ranked] == [5, 5, 5]
    assert world.sample("ranked", 3, k=5) == ranked, "the same seed, the same sample"
    assert all(EOS not in y[:-1] for item in ranked for y in item.completions)


def test_the_limit_on_whole_sequences_is_the_reward(world: Tiny) -> None:
    limit = bradley_terry(world, 3.0, partial=False)
    whole = world.where(lambda x, y: ended(y))
    assert limit[~whole].isnan().all()
    assert not limit[whole].isnan().any()
    for prompt in PROMPTS:
        mine = whole & world.where(lambda x, y, prompt=prompt: x == prompt)
        rewards = 3.0 * world.table(world.value)[mine]
        assert (limit[mine] - (rewards - rewards.mean())).abs().max() < 1e-6


def test_the_limit_on_prefixes_is_lemma_2(world: Tiny) -> None:
    sharpness = 3.0
    wins = comparisons(world, sharpness)
    limit = bradley_terry(world, sharpness)
    compared = world.where(lambda x, y: len(y) > 0)
    assert limit[~compared].isnan().all()
    wins, limit = wins[compared][:, compared], limit[compared]
    predicted = (wins + wins.T) * torch.sigmoid(limit[:, None] - limit[None])
    # At the minimum each prefix wins as often as its number says: the condition for a minimum ...
    assert (predicted.sum(1) - wins.sum(1)).abs().max() < 1e-12
    # ... and the single preferences P(u ≻ u') are the lemma's, as closely as one number can say.
    seen = wins + wins.T
    errors = (predicted - wins).abs() / seen.clamp(min=1e-12)
    assert float((errors * seen).sum() / seen.sum()) < 0.03
    # Near sharpness·V^π0, but not it: the judge sees each completion, not their mean.
    values = world.table(world.value)[compared]
    assert 0.9 < float(torch.corrcoef(torch.stack([values, limit]))[0, 1]) < 0.9999
