"""Plackett-Luce: by hand, against loops over ragged rankings, and what it refuses."""

import math

import pytest
import torch
from torch import Tensor

from trimtab_models.objectives.bradley_terry import BradleyTerry
from trimtab_models.objectives.plackett_luce import AGGREGATIONS, PlackettLuce, ranking_loss
from trimtab_models.rows import Pair, Ranked

RANKED = Ranked(prompt=[7], completions=[[1, 2], [3], [4, 5]])
REWARDS = [[0.5, 0.7], [0.9], [0.2, 0.3]]
BY_HAND = {  # f of the three completions; C is their mean length, 5/3
    "sum": [1.2, 0.9, 0.5],
    "average": [5 / 3 * 0.6, 5 / 3 * 0.9, 5 / 3 * 0.25],
    "soft-maximum": [5 / 3 * 2 * math.log(sum(math.exp(r / 2) for r in row)) for row in REWARDS],
    "soft-minimum": [5 / 3 * -2 * math.log(sum(math.exp(-r / 2) for r in row)) for row in REWARDS],
}


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_by_hand(aggregation: str) -> None:
    objective = PlackettLuce(aggregation)
    rows = objective.collate([RANKED], 0)
    # Column 0 is the prompt's own output, what stands past the end is padding's: neither counts.
    outputs = torch.full((3, 3), 50.0)
    for i, row in enumerate(REWARDS):
        outputs[i, 1 : 1 + len(row)] = torch.tensor(row).logit()
    f = BY_HAND[aggregation]
    result = objective.aggregate(rows.gather(outputs).sigmoid(), rows)
    assert result.tolist() == pytest.approx(f, rel=1e-5)
    first = math.exp(f[0]) / sum(map(math.exp, f))
    second = math.exp(f[1]) / (math.exp(f[1]) + math.exp(f[2]))
    loss = objective.loss(outputs[..., None], rows)
    assert loss.item() == pytest.approx(-math.log(first * second), rel=1e-5)


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ("sum", [5.0, 15.0]),
        ("average", [10.0, 10.0]),
        # C·b·log(T·e^(1/b)) = C·(b·log T + 1) at b = 2, and with −b: C·(1 − b·log T).
        ("soft-maximum", [10 * (2 * math.log(5) + 1), 10 * (2 * math.log(15) + 1)]),
        ("soft-minimum", [10 * (1 - 2 * math.log(5)), 10 * (1 - 2 * math.log(15))]),
    ],
)
def test_the_papers_own_example(aggregation: str, expected: list[float]) -> None:
    """Its appendix C: lengths 5 and 15, all rewards 1, so C = 10, whatever else is in the batch."""
    objective = PlackettLuce(aggregation)
    example, other = Ranked([7], [[1] * 5, [1] * 15]), Ranked([7], [[1] * 40, [1], [1]])
    rows = objective.collate([other, example], 0)
    assert objective.aggregate(torch.ones(5, 40), rows)[3:].tolist() == pytest.approx(expected)


def test_the_average_takes_its_scale_and_ignores_length() -> None:
    objective = PlackettLuce(scale=10.0)
    rows = objective.collate([Ranked([7], [[1], [2, 3, 4]])], 0)
    same = torch.full((2, 3), 0.3)
    assert objective.aggregate(same, rows).tolist() == pytest.approx([3.0, 3.0])
    assert PlackettLuce("sum").aggregate(same, rows).tolist() == pytest.approx([0.3, 0.9])
    soft = PlackettLuce("soft-minimum", scale=10.0, temperature=0.5).aggregate(same, rows)
    assert soft.tolist() == pytest.approx([3.0, 3.0 - 5 * math.log(3)])


def _random(seed: int) -> tuple[list[Ranked], Tensor]:
    draw = torch.Generator().manual_seed(seed)

    def ids(most: int) -> list[int]:
        n = int(torch.randint(1, most + 1, (1,), generator=draw))
        return torch.randint(1, 50, (n,), generator=draw).tolist()

    ranked = [Ranked(ids(4), [ids(7) for _ in range(k)]) for k in (2, 5, 3, 4, 2)]
    rows = PlackettLuce().collate(ranked, 0)
    return ranked, torch.randn(*rows.input_ids.shape, 1, generator=draw)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("seed", range(3))
def test_against_loops(seed: int, aggregation: str) -> None:
    ranked, outputs = _random(seed)
    row, total = 0, 0.0
    for item in ranked:
        scores = []
        c = sum(map(len, item.completions)) / len(item.completions)
        for completion in item.completions:
            start = len(item.prompt)
            r = [float(outputs[row, start + t].sigmoid()) for t in range(len(completion))]
            by_name = {
                "sum": sum(r),
                "average": c * sum(r) / len(r),
                "soft-maximum": c * 2 * math.log(sum(math.exp(x / 2) for x in r)),
                "soft-minimum": c * -2 * math.log(sum(math.exp(-x / 2) for x in r)),
            }
            scores.append(by_name[aggregation])
            row += 1
        while scores:
            total -= scores[0] - math.log(sum(map(math.exp, scores)))
            scores.pop(0)
    objective = PlackettLuce(aggregation)
    loss = objective.loss(outputs, objective.collate(ranked, 0))
    assert loss.item() == pytest.approx(total / len(ranked), rel=1e-5)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_gradients_of_ragged_rankings_are_finite(aggregation: str) -> None:
    ranked, outputs = _random(0)
    outputs = outputs.requires_grad_()
    objective = PlackettLuce(aggregation)
    objective.loss(outputs, objective.collate(ranked, 0)).backward()
    assert outputs.grad is not None
    assert bool(outputs.grad.isfinite().all())
    assert bool((outputs.grad != 0).any())


def test_of_two_it_is_bradley_terry() -> None:
    objective = BradleyTerry()
    rows = objective.collate([Pair([7], [1], [2])], 0)
    scores = torch.tensor([1.5, -0.2])
    expected = objective.loss(scores[:, None, None].expand(2, 2, 1), rows)
    assert ranking_loss(scores, rows.groups).item() == pytest.approx(expected.item(), rel=1e-6)


def test_what_it_refuses_and_what_it_says_of_itself() -> None:
    with pytest.raises(ValueError, match="aggregation is one of sum, average"):
        PlackettLuce("mean")
    with pytest.raises(ValueError, match="scale"):
        PlackettLuce(scale=0.0)
    with pytest.raises(ValueError, match="temperature"):
        PlackettLuce("soft-maximum", temperature=0.0)
    with pytest.raises(ValueError, match="a sum has no scale"):
        PlackettLuce("sum", scale=2.0)
    for aggregation in ("sum", "average"):
        with pytest.raises(ValueError, match=f"{aggregation} has no temperature"):
            PlackettLuce(aggregation, temperature=2.0)
    assert PlackettLuce().info()["link"] == "sigmoid"
