"""TD(0), CD-FUDGE, FUDGE and RAD: by hand, and against loops."""

import math

import pytest
import torch
from torch import Tensor

from trimtab_models.objectives import OBJECTIVES, Objective
from trimtab_models.objectives.fudge import Fudge
from trimtab_models.objectives.rad import Rad
from trimtab_models.objectives.returns import lambda_returns
from trimtab_models.objectives.td_lambda import TdLambda
from trimtab_models.rows import Rollout, Rows

# Two answers, of three tokens and of one; 90 stands where nothing may look.
TWO = [Rollout([7, 7], [1, 2, 3], 1.0), Rollout([7], [1], 0.0)]
SCORES = torch.tensor([[90.0, 90.0, 1.0, 2.0, 3.0], [90.0, 0.5, 90.0, 90.0, 90.0]])[..., None]


def random_rollouts(seed: int, n: int = 8, rewards: tuple[float, ...] = ()) -> list[Rollout]:
    """Prompts of 1 to 3 tokens and completions of 1 to 6, of 10; rewards normal or of a list."""
    draw = torch.Generator().manual_seed(seed)

    def ids(most: int) -> list[int]:
        length = int(torch.randint(1, most + 1, (1,), generator=draw))
        return torch.randint(0, 10, (length,), generator=draw).tolist()

    def reward() -> float:
        if rewards:
            return rewards[int(torch.randint(len(rewards), (1,), generator=draw))]
        return float(torch.randn(1, generator=draw))

    return [Rollout(ids(3), ids(6), reward()) for _ in range(n)]


def random_outputs(rows: Rows, width: int, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*rows.input_ids.shape, width, generator=draw)


def prefixes(rollout: Rollout, values: Tensor) -> list[float]:
    """What a row of scalar outputs says after each token of the completion."""
    return [float(values[len(rollout.prompt) + t, 0]) for t in range(len(rollout.completion))]


def _loss(objective: Objective, rollouts: list[Rollout], outputs: Tensor) -> float:
    return objective.loss(outputs, objective.collate(rollouts, 0)).item()


def test_td_0_by_hand() -> None:
    # V_1 → V_2, V_2 → R for it is all but ended, V_3 → R.
    expected = ((1 - 2) ** 2 + (2 - 1) ** 2 + (3 - 1) ** 2 + 0.5**2) / 4
    assert _loss(OBJECTIVES["td-0"](), TWO, SCORES) == pytest.approx(expected)


def test_cd_fudge_by_hand() -> None:
    expected = ((1 - 1) ** 2 + (2 - 1) ** 2 + (3 - 1) ** 2 + 0.5**2) / 4
    assert _loss(OBJECTIVES["cd-fudge"](), TWO, SCORES) == pytest.approx(expected)


def test_fudge_by_hand() -> None:
    nats = [math.log(1 + math.exp(-f)) for f in (1, 2, 3)] + [math.log(1 + math.exp(0.5))]
    assert _loss(Fudge(), TWO, SCORES) == pytest.approx(sum(nats) / 4)
    assert Fudge().info() == {"is_value": False, "link": "log_sigmoid"}


def test_rad_by_hand() -> None:
    long = (1 * (1 - 1) ** 2 + 2 * (2 - 1) ** 2 + 3 * (3 - 1) ** 2) / 6
    assert _loss(Rad(), TWO, SCORES) == pytest.approx((long + 0.5**2) / 2)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["td-0", "cd-fudge", "rad", "fudge"])
def test_against_loops(name: str, seed: int) -> None:
    rollouts = random_rollouts(seed, rewards=(0.0, 1.0) if name == "fudge" else ())
    objective = OBJECTIVES[name]()
    outputs = random_outputs(objective.collate(rollouts, 0), 1, seed)
    tokens: list[float] = []
    rows: list[float] = []
    for rollout, values in zip(rollouts, outputs, strict=True):
        scores, r = prefixes(rollout, values), rollout.label
        end = len(scores)
        if name == "td-0":
            targets = [scores[t + 1] if t + 1 < end - 1 else r for t in range(end)]
            errors = [(v - g) ** 2 for v, g in zip(scores, targets, strict=True)]
        elif name == "fudge":
            chances = [1 / (1 + math.exp(-v)) for v in scores]
            errors = [-math.log(p if r == 1 else 1 - p) for p in chances]
        else:
            errors = [(v - r) ** 2 for v in scores]
        tokens += errors
        weighted = [t * error for t, error in enumerate(errors, 1)]
        rows.append(sum(weighted) / sum(range(1, end + 1)))
    expected = sum(rows) / len(rows) if name == "rad" else sum(tokens) / len(tokens)
    assert _loss(objective, rollouts, outputs) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("decay", [0.0, 0.4, 1.0])
def test_returns_of_bins_are_returns_bin_by_bin(decay: float) -> None:
    draw = torch.Generator().manual_seed(3)
    values = torch.randn(5, 6, 4, generator=draw)
    rewards = torch.randn(5, 4, generator=draw)
    lengths = torch.tensor([1, 3, 6, 7, 2])
    together = lambda_returns(values, rewards, lengths, decay)
    for b in range(4):
        alone = lambda_returns(values[..., b], rewards[:, b], lengths, decay)
        assert torch.allclose(together[..., b], alone, atol=1e-6)


def test_fudge_takes_a_threshold_or_an_attribute() -> None:
    rewards = [Rollout([1], [2], reward) for reward in (-0.5, 0.2, 0.3)]
    assert Fudge(threshold=0.2).collate(rewards, 0).labels.tolist() == [0, 0, 1]
    with pytest.raises(ValueError, match=r"reward -0\.5; set a threshold"):
        Fudge().collate(rewards, 0)


def test_names_tell_the_ends_of_lambda() -> None:
    assert [TdLambda(decay).name for decay in (0, 0.95, 1)] == [
        "TD(0)",
        "TD(λ), λ=0.95",
        "CD-FUDGE",
    ]
