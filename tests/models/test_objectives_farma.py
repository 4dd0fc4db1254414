"""FaRMA: by hand, against loops, and where its gradient goes."""

import math

import pytest
import torch

from trimtab_models.objectives.farma import Farma
from trimtab_models.rows import Pair

PAIR = Pair(prompt=[1], chosen=[2, 0], rejected=[1])


def test_by_hand() -> None:
    objective = Farma(weight=2.0)
    outputs = torch.full((2, 3, 3), 99.0)
    # Position t holds Q(prefix, ·); 99 stands where nothing may be read.
    outputs[0, 0] = torch.tensor([9.0, 9.0, 1.0])  # of the first token, 2
    outputs[0, 1] = torch.tensor([3.0, 4.0, 0.5])  # of the second, 0; the most is 4
    outputs[1, 0] = torch.tensor([9.0, 2.5, 9.0])  # of the only token, 1
    loss = objective.loss(outputs, objective.collate([PAIR], 0))
    expected = math.log(1 + math.exp(-(3.0 - 2.5))) + 2.0 * (1.0 - 4.0) ** 2
    assert loss.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_against_loops(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)

    def ids(most: int) -> list[int]:
        n = int(torch.randint(1, most + 1, (1,), generator=draw))
        return torch.randint(0, 6, (n,), generator=draw).tolist()

    pairs = [Pair(ids(3), ids(6), ids(6)) for _ in range(5)]
    objective = Farma()
    rows = objective.collate(pairs, 0)
    outputs = torch.randn(*rows.input_ids.shape, 6, generator=draw)
    preferences, errors = [], []
    for i, pair in enumerate(pairs):
        ends = []
        for row, side in ((2 * i, pair.chosen), (2 * i + 1, pair.rejected)):
            for t, token in enumerate(side):
                q = float(outputs[row, len(pair.prompt) + t - 1, token])
                if t + 1 < len(side):
                    errors.append((q - float(outputs[row, len(pair.prompt) + t].max())) ** 2)
                else:
                    ends.append(q)
        preferences.append(math.log(1 + math.exp(ends[1] - ends[0])))
    expected = sum(preferences) / len(preferences) + sum(errors) / len(errors)
    assert objective.loss(outputs, rows).item() == pytest.approx(expected, rel=1e-5)


def test_the_maximum_carries_no_gradient() -> None:
    objective = Farma()
    outputs = torch.zeros(2, 3, 3)
    outputs[0, 1, 1] = 4.0
    outputs.requires_grad_()
    objective.loss(outputs, objective.collate([PAIR], 0)).backward()
    assert outputs.grad is not None
    assert outputs.grad[0, 0, 2].item() == pytest.approx(2 * (0.0 - 4.0))
    assert outputs.grad[0, 1, 1].item() == 0.0


def test_completions_of_one_token_have_no_inner_error() -> None:
    objective = Farma()
    rows = objective.collate([Pair([1], [2], [0])], 0)
    assert objective.loss(torch.zeros(2, 2, 3), rows).item() == pytest.approx(math.log(2))


def test_a_weight_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="weight"):
        Farma(0.0)
