"""Bradley-Terry on measured odds: by hand, against loops, and what its minimum is."""

import math

import pytest
import torch
from torch import Tensor

from trimtab_models.objectives.bradley_terry import BradleyTerry, FullBradleyTerry
from trimtab_models.rows import Pair

# The chosen side has three tokens, the rejected one two; scores after 1, 2, 3 and 1, 2 tokens.
SCORES = torch.tensor([[9.0, 9.0, 1.0, 2.0, 4.0], [-9.0, -9.0, 0.5, 1.0, 99.0]])[..., None]
PAIR = Pair([7, 8], [1, 2, 3], [4, 5], rewards=(0.75, 0.25))


def _nats(margin: float) -> float:
    return math.log(1 + math.exp(-margin))


def _soft(p: float, ahead: float) -> float:
    return p * _nats(ahead) + (1 - p) * _nats(-ahead)


def _loss(objective: FullBradleyTerry, *pairs: Pair, scores: Tensor = SCORES) -> float:
    return float(objective.loss(scores, objective.collate(pairs, 0)))


def test_measured_odds_by_hand() -> None:
    pair = PAIR._replace(odds=((1, 1, 0.8), (2, 1, 0.5), (3, 2, 1.0)))
    expected = (_soft(0.8, 1 - 0.5) + _soft(0.5, 2 - 0.5) + _nats(4 - 1)) / 3
    assert _loss(BradleyTerry(), pair) == pytest.approx(expected, rel=1e-6)
    # No length is drawn of a pair that was measured.
    assert _loss(BradleyTerry(ratio=1e-9), pair) == pytest.approx(expected, rel=1e-6)


def test_certain_odds_of_every_length_are_inherited_labels() -> None:
    pair = PAIR._replace(odds=((1, 1, 1.0), (2, 2, 1.0), (3, 2, 1.0)))
    assert _loss(BradleyTerry(), pair) == _loss(BradleyTerry(), PAIR)


def test_a_tie_has_its_minimum_where_both_scores_are_equal() -> None:
    tie = PAIR._replace(odds=((2, 2, 0.5),))
    scores = torch.zeros(2, 5, 1, requires_grad=True)
    objective = BradleyTerry()
    loss = objective.loss(scores, objective.collate([tie], 0))
    assert loss.item() == pytest.approx(math.log(2))
    loss.backward()
    assert scores.grad is not None
    assert not scores.grad.any()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_minimum_is_the_measured_probability(smoothing: float) -> None:
    """Lemma 2 of PARGS: σ(r(y_w^{1:i}) − r(y_l^{1:j})) = P."""
    odds = ((1, 1, 0.8), (2, 1, 0.3), (3, 2, 0.6))
    scores = torch.zeros(2, 5, 1, dtype=torch.float64, requires_grad=True)
    objective = BradleyTerry(label_smoothing=smoothing)
    rows = objective.collate([PAIR._replace(odds=odds)], 0)
    optimiser = torch.optim.LBFGS([scores], max_iter=200, tolerance_grad=1e-12)

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = objective.loss(scores, rows)
        loss.backward()
        return loss

    optimiser.step(closure)  # type: ignore[arg-type]
    for i, j, p in odds:
        won = torch.sigmoid(scores[0, 1 + i, 0] - scores[1, 1 + j, 0]).item()
        assert won == pytest.approx(p * (1 - smoothing) + (1 - p) * smoothing, abs=1e-4)


def test_label_smoothing_by_hand() -> None:
    ahead = [1 - 0.5, 2 - 1.0, 4 - 1.0]
    expected = sum(0.9 * _nats(one) + 0.1 * _nats(-one) for one in ahead) / 3
    assert _loss(BradleyTerry(label_smoothing=0.1), PAIR) == pytest.approx(expected, rel=1e-6)
    whole = 0.9 * _nats(3) + 0.1 * _nats(-3)
    assert _loss(FullBradleyTerry(label_smoothing=0.1), PAIR) == pytest.approx(whole, rel=1e-6)


def test_the_margin_by_hand() -> None:
    """m·|R_w − R_l| = 4·0.5 at P = 1, nothing at a tie, the other side's at P = 0."""
    inherited = sum(_nats(one - 2) for one in (0.5, 1.0, 3.0)) / 3
    assert _loss(BradleyTerry(margin=4), PAIR) == pytest.approx(inherited, rel=1e-6)
    assert _loss(FullBradleyTerry(margin=4), PAIR) == pytest.approx(_nats(3 - 2), rel=1e-6)
    for p, ahead in ((1.0, 1 - 2.0), (0.5, 1.0), (0.0, 1 + 2.0), (0.75, 1 - 1.0)):
        pair = PAIR._replace(odds=((2, 2, p),))
        assert _loss(BradleyTerry(margin=4), pair) == pytest.approx(_soft(p, ahead), rel=1e-6)
    with pytest.raises(ValueError, match="margin needs the rewards of both sides"):
        BradleyTerry(margin=1).collate([PAIR, PAIR._replace(rewards=())], 0)


def test_whole_answers_use_their_measured_odds() -> None:
    """A tie of the whole answers, which the order of the sides does not show."""
    pair = PAIR._replace(odds=((1, 1, 0.9), (3, 2, 0.5)))
    assert _loss(FullBradleyTerry(), pair) == pytest.approx(_soft(0.5, 3), rel=1e-6)
    pair = PAIR._replace(odds=((1, 1, 0.9), (3, 1, 0.2), (2, 2, 0.3)))
    assert _loss(FullBradleyTerry(), pair) == pytest.approx(_nats(3), rel=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_measured_and_inherited_pairs_in_one_batch_against_loops(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)

    def number(most: int) -> int:
        return int(torch.randint(1, most + 1, (1,), generator=draw))

    pairs = []
    for i in range(6):
        one = Pair([1] * number(3), [2] * number(7), [3] * number(7), (float(i), 1.0))
        if i % 2:
            points = [(number(len(one.chosen)), number(len(one.rejected))) for _ in range(i)]
            odds = tuple((*at, float(torch.rand(1, generator=draw))) for at in points)
            one = one._replace(odds=odds)
        pairs.append(one)
    objective = BradleyTerry(margin=0.5, label_smoothing=0.2)
    rows = objective.collate(pairs, 0)
    scores = torch.randn(12, rows.input_ids.shape[1], 1, generator=draw)
    terms = []
    for i, pair in enumerate(pairs):
        sides = [scores[2 * i + s, len(pair.prompt) - 1 :, 0] for s in range(2)]
        ends = len(pair.chosen), len(pair.rejected)
        every = [(min(t, ends[0]), min(t, ends[1]), 1.0) for t in range(1, max(ends) + 1)]
        for a, b, p in pair.odds or every:
            ahead = float(sides[0][a] - sides[1][b])
            ahead -= 0.5 * abs(pair.rewards[0] - pair.rewards[1]) * (2 * p - 1)
            terms.append(_soft(0.8 * p + 0.2 * (1 - p), ahead))
    loss = objective.loss(scores, rows).item()
    assert loss == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_exchanged_sides_have_the_same_loss() -> None:
    pair = PAIR._replace(odds=((1, 2, 0.7), (3, 2, 0.25)))
    turned = Pair(
        pair.prompt,
        pair.rejected,
        pair.chosen,
        pair.rewards[::-1],
        tuple((j, i, 1 - p) for i, j, p in pair.odds),
    )
    objective = BradleyTerry(margin=2, label_smoothing=0.1)
    assert _loss(objective, pair) == pytest.approx(
        _loss(objective, turned, scores=SCORES.flip(0)), rel=1e-6
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"margin": -1}, "margin must be 0 or above"),
        ({"margin": math.nan}, "margin must be 0 or above"),
        ({"label_smoothing": 0.5}, "label_smoothing is a share of wrong labels"),
        ({"label_smoothing": -0.1}, "label_smoothing is a share"),
    ],
)
@pytest.mark.parametrize("kind", [BradleyTerry, FullBradleyTerry])
def test_options_outside_are_refused(kind: type, options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**options)
