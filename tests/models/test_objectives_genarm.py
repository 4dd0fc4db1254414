"""GenARM: by hand, against loops, and the factor it is served with."""

import math

import pytest
import torch

from trimtab_models.objectives.genarm import GenArm, log_likelihoods
from trimtab_models.rows import Pair


def test_by_hand() -> None:
    objective = GenArm(beta=0.5)
    rows = objective.collate([Pair([1], [0, 1], [1])], 0)
    probabilities = torch.tensor(
        [[[0.5, 0.5], [0.2, 0.8], [0.1, 0.9]], [[0.7, 0.3], [0.5, 0.5], [0.5, 0.5]]]
    )
    margin = 0.5 * (math.log(0.5) + math.log(0.8) - math.log(0.3))
    loss = objective.loss(probabilities.log() + 3.0, rows)  # logits are free by a constant
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-margin)), rel=1e-5)


def test_log_likelihoods_against_loops() -> None:
    draw = torch.Generator().manual_seed(0)
    pairs = [Pair([1, 2][: i % 2 + 1], [3] * (i + 1), [4, 5, 0][: 3 - i]) for i in range(3)]
    rows = GenArm().collate(pairs, 0)
    logits = torch.randn(*rows.input_ids.shape, 6, generator=draw)
    expected = []
    for i, pair in enumerate(pairs):
        for row, side in ((2 * i, pair.chosen), (2 * i + 1, pair.rejected)):
            at = len(pair.prompt) - 1
            expected.append(
                sum(float(logits[row, at + t].log_softmax(-1)[v]) for t, v in enumerate(side))
            )
    assert log_likelihoods(logits, rows).tolist() == pytest.approx(expected, rel=1e-5)


def test_it_is_served_in_log_odds_of_preference() -> None:
    assert GenArm(0.2).info()["alpha"] == 0.2


@pytest.mark.parametrize("beta", [0.0, -1.0, math.nan])
def test_a_beta_of_nothing_is_refused(beta: float) -> None:
    with pytest.raises(ValueError, match="β_r"):
        GenArm(beta)
