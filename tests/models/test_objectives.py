"""The losses: hand-computed examples, and the fast paths against slow and obvious ones."""

import math

import pytest
import torch
from torch import Tensor

from trimtab_models.objectives.bradley_terry import BradleyTerry, FullBradleyTerry
from trimtab_models.objectives.returns import lambda_returns
from trimtab_models.objectives.td_lambda import TdLambda
from trimtab_models.rows import Pair, Rollout, pad


def _nats(margin: float) -> float:
    return math.log(1 + math.exp(-margin))


def _values(rows: list[list[float]], width: int) -> Tensor:
    return torch.tensor([row + [99.0] * (width - len(row)) for row in rows])[..., None]


PAIR = Pair(prompt=[7, 8], chosen=[1, 2, 3], rejected=[4, 5])
# Position 0 is the prompt's first token: its value, like the padding's, must not matter.
SCORES = [[50.0, 60.0, 1.0, 2.0, 4.0], [-50.0, -60.0, 0.5, 1.0]]
# Prefixes of 1, 2, 3 tokens end at positions 2, 3, 4; the rejected side keeps its second score.


def test_partial_bradley_terry_by_hand() -> None:
    objective = BradleyTerry()
    loss = objective.loss(_values(SCORES, 5), objective.collate([PAIR], 0))
    expected = (_nats(1 - 0.5) + _nats(2 - 1) + _nats(4 - 1)) / 3
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_full_bradley_terry_by_hand() -> None:
    objective = FullBradleyTerry()
    loss = objective.loss(_values(SCORES, 5), objective.collate([PAIR], 0))
    assert loss.item() == pytest.approx(_nats(4 - 1), rel=1e-6)


def _random_pairs(seed: int) -> tuple[list[Pair], Tensor]:
    draw = torch.Generator().manual_seed(seed)

    def ids(most: int) -> list[int]:
        n = int(torch.randint(1, most + 1, (1,), generator=draw))
        return torch.randint(1, 50, (n,), generator=draw).tolist()

    pairs = [Pair(ids(4), ids(9), ids(9)) for _ in range(6)]
    width = BradleyTerry().collate(pairs, 0).input_ids.shape[1]
    return pairs, torch.randn(12, width, 1, generator=draw)


@pytest.mark.parametrize("partial", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_bradley_terry_against_loops(seed: int, partial: bool) -> None:
    pairs, values = _random_pairs(seed)
    terms = []
    for i, pair in enumerate(pairs):
        better = [values[2 * i, len(pair.prompt) + t] for t in range(len(pair.chosen))]
        worse = [values[2 * i + 1, len(pair.prompt) + t] for t in range(len(pair.rejected))]
        longest = max(len(better), len(worse))
        better += [better[-1]] * (longest - len(better))
        worse += [worse[-1]] * (longest - len(worse))
        margins = [float(b - w) for b, w in zip(better, worse, strict=True)]
        terms += [_nats(margin) for margin in (margins if partial else margins[-1:])]
    objective = BradleyTerry() if partial else FullBradleyTerry()
    loss = objective.loss(values, objective.collate(pairs, 0))
    assert loss.item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_a_share_of_the_prefixes_always_holds_the_whole_pair() -> None:
    torch.manual_seed(0)
    few = BradleyTerry(ratio=1e-9)
    whole = FullBradleyTerry()
    pairs, values = _random_pairs(0)
    rows = few.collate(pairs, 0)
    assert few.loss(values, rows).item() == pytest.approx(whole.loss(values, rows).item())
    # Half of them lies near the mean over all, and is drawn anew each time.
    half = BradleyTerry(ratio=0.5)
    draws = [half.loss(values, rows).item() for _ in range(300)]
    assert len(set(draws)) > 100
    assert sum(draws) / 300 == pytest.approx(BradleyTerry().loss(values, rows).item(), rel=0.1)


def test_as_many_rows_of_a_pair_as_wanted() -> None:
    """Two of a pair's lengths, or one or two with equal chances; each length equally often."""
    torch.manual_seed(0)
    longest = torch.tensor([3, 1, 5])
    drawn = torch.stack([BradleyTerry(rows_per_pair=2).compared(longest) for _ in range(600)])
    assert drawn.sum(2).unique(dim=0).tolist() == [[2, 1, 2]]
    shares = torch.tensor([[2 / 3] * 3 + [0] * 2, [1] + [0] * 4, [2 / 5] * 5])
    assert (drawn.float().mean(0) - shares).abs().max() < 0.08  # four standard errors
    drawn = torch.stack([BradleyTerry(rows_per_pair=1.5).compared(longest) for _ in range(600)])
    counts = drawn.sum(2)[:, [0, 2]]
    assert counts.unique().tolist() == [1, 2]
    assert (counts.float().mean(0) - 1.5).abs().max() < 0.08
    torch.manual_seed(1)
    first = BradleyTerry(rows_per_pair=1.5).compared(longest)
    torch.manual_seed(1)
    assert torch.equal(first, BradleyTerry(rows_per_pair=1.5).compared(longest))


def test_rows_of_a_pair_by_hand() -> None:
    objective = BradleyTerry(rows_per_pair=1)
    rows = objective.collate([PAIR], 0)
    torch.manual_seed(0)
    losses = {round(objective.loss(_values(SCORES, 5), rows).item(), 5) for _ in range(60)}
    assert losses == {round(_nats(margin), 5) for margin in (1 - 0.5, 2 - 1, 4 - 1)}
    all_three = BradleyTerry(rows_per_pair=9).loss(_values(SCORES, 5), rows)
    assert all_three.item() == BradleyTerry().loss(_values(SCORES, 5), rows).item()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        *(({"ratio": ratio}, "ratio") for ratio in (0, -0.1, 1.1)),
        *(({"rows_per_pair": rows}, "rows_per_pair") for rows in (0.9, -1, math.inf, math.nan)),
        ({"ratio": 0.5, "rows_per_pair": 2}, "set one of the two"),
    ],
)
def test_prefixes_that_cannot_be_chosen_are_refused(options: dict[str, float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        BradleyTerry(**options)


def test_lambda_returns_by_hand() -> None:
    # Three tokens, λ = 0.5, R = 8: G_3 = G_2 = 8 and G_1 = 0.5·V_2 + 0.5·G_2 = 0.5·2 + 4.
    returns = lambda_returns(
        torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([8.0]), torch.tensor([3]), 0.5
    )
    assert returns.tolist() == [[5.0, 8.0, 8.0]]


def test_td_lambda_loss_by_hand() -> None:
    objective = TdLambda(0.5)
    rows = objective.collate([Rollout([7, 7], [1, 2, 3], 8.0), Rollout([7], [1], -1.0)], 0)
    values = _values([[90.0, 90.0, 1.0, 2.0, 3.0], [90.0, 1.0]], 5)
    expected = ((1 - 5) ** 2 + (2 - 8) ** 2 + (3 - 8) ** 2 + (1 + 1) ** 2) / 4
    assert objective.loss(values, rows).item() == pytest.approx(expected)


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.95, 1.0])
def test_lambda_returns_against_the_recursion(decay: float) -> None:
    draw = torch.Generator().manual_seed(1)
    values = torch.randn(8, 7, generator=draw, dtype=torch.float64)
    rewards = torch.randn(8, generator=draw, dtype=torch.float64)
    lengths = torch.randint(1, 8, (8,), generator=draw)
    fast = lambda_returns(values, rewards, lengths, decay)
    for row in range(8):
        end = int(lengths[row]) - 1
        target = float(rewards[row])
        assert fast[row, end].item() == pytest.approx(target)
        for t in range(end - 1, -1, -1):
            ahead = float(rewards[row]) if t + 1 == end else float(values[row, t + 1])
            target = (1 - decay) * ahead + decay * target
            assert fast[row, t].item() == pytest.approx(target)


def test_td_targets_carry_no_gradient() -> None:
    objective = TdLambda(0.0)
    rows = objective.collate([Rollout([7], [1, 2, 3], 1.0)], 0)
    values = torch.tensor([[[0.0], [1.0], [2.0], [4.0]]], requires_grad=True)
    objective.loss(values, rows).backward()
    # d/dV_1 of (V_1 − V_2)²/3 alone; V_2 gets no share of it, its own target is R.
    assert values.grad is not None
    assert values.grad[0, :, 0].tolist() == pytest.approx(
        [0, 2 * (1 - 2) / 3, 2 * (2 - 1) / 3, 2.0]
    )


@pytest.mark.parametrize("decay", [-0.1, 1.1])
def test_a_decay_outside_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match="λ"):
        TdLambda(decay)


def test_an_empty_completion_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        pad([Rollout([1], [], 0.0)], 0)
