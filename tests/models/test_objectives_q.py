"""Q heads and ILQL: by hand, against loops, and where gradients stop."""

import math

import pytest
import torch
from torch import Tensor

from test_objectives_values import random_outputs, random_rollouts
from trimtab_models.objectives import OBJECTIVES, Objective
from trimtab_models.objectives.ilql import Ilql
from trimtab_models.objectives.q_values import DuelingQ, QExact, QSampled
from trimtab_models.objectives.value_advantage import ValueAdvantage
from trimtab_models.rows import Rollout

VOCAB = 10
NAN = [math.nan] * 3
# A prompt of two tokens and the answer 1, 2 of a vocabulary of three, R = 5; and 0 alone, R = −1.
TWO = [Rollout([0, 0], [1, 2], 5.0), Rollout([0], [0], -1.0)]
# What stands before each token; nothing else may be looked at.
Q = torch.tensor([[NAN, [1.0, 2.0, 3.0], [4.0, 6.0, 8.0], NAN], [[0.5, 0.0, 0.0], NAN, NAN, NAN]])
LOG_PI0 = torch.tensor([0.5, 0.25, 0.25]).log().expand(2, 4, 3)
V = torch.tensor([[math.nan, 7.0, 9.0, math.nan], [2.0, *NAN]])
# With π0 = (½, ¼, ¼) the second state is worth 2 + 1.5 + 2 = 5.5 exactly, Q(s_1, 2) = 8 sampled.


def _loss(name: str, outputs: Tensor, **options: float) -> float:
    objective = OBJECTIVES[name](**options)
    rows = objective.collate(TWO, 0)
    return objective.loss(outputs, rows, LOG_PI0 if objective.reads_base else None).item()


def test_q_exact_by_hand() -> None:
    assert _loss("q-exact", Q) == pytest.approx(((2 - 5.5) ** 2 + (8 - 5) ** 2 + 1.5**2) / 3)


def test_q_sampled_by_hand() -> None:
    assert _loss("q-sampled", Q) == pytest.approx(((2 - 8) ** 2 + (8 - 5) ** 2 + 1.5**2) / 3)


def test_cd_q_by_hand() -> None:
    assert _loss("cd-q", Q) == pytest.approx((((2 - 5.5) ** 2 + (8 - 5) ** 2) / 2 + 1.5**2 / 2) / 2)


def test_q_by_lambda_returns_by_hand() -> None:
    # λ = ½: G_1 = R = 5, and G_0 = ½·5.5 + ½·5 exactly, ½·8 + ½·5 sampled.
    rest = (8 - 5) ** 2 + 1.5**2
    exact, sampled = (2 - 5.25) ** 2 + rest, (2 - 6.5) ** 2 + rest
    assert _loss("q-exact", Q, decay=0.5) == pytest.approx(exact / 3)
    assert _loss("q-sampled", Q, decay=0.5) == pytest.approx(sampled / 3)
    # λ = 1: the rewards alone, whatever the backup.
    expected = pytest.approx(((2 - 5) ** 2 + rest) / 3)
    assert _loss("q-exact", Q, decay=1.0) == _loss("q-sampled", Q, decay=1.0) == expected


def test_dueling_q_by_hand() -> None:
    # V + A: (8, 9, 10), (13, 15, 17), (2.5, …).
    outputs = torch.cat([Q, V[..., None]], -1)
    worth = 13 / 2 + 15 / 4 + 17 / 4
    rest = (17 - 5) ** 2 + (2.5 + 1) ** 2
    assert _loss("dueling-q", outputs) == pytest.approx(((9 - worth) ** 2 + rest) / 3)
    expected = (9 - (0.5 * worth + 0.5 * 5)) ** 2 + rest
    assert _loss("dueling-q", outputs, decay=0.5) == pytest.approx(expected / 3)


def test_a_centred_dueling_q_by_hand() -> None:
    # A less its mean: (−1, 0, 1) and (−2, 0, 2); so Q = (6, 7, 8), (7, 9, 11), (2 + ⅓, …).
    outputs = torch.cat([Q, V[..., None]], -1)
    worth = 7 / 2 + 9 / 4 + 11 / 4
    first = 2 + 0.5 - 0.5 / 3
    expected = ((7 - worth) ** 2 + (11 - 5) ** 2 + (first + 1) ** 2) / 3
    assert _loss("dueling-q", outputs, centred=True) == pytest.approx(expected)


def test_a_token_that_the_data_never_shows_keeps_its_states_value() -> None:
    """As a sum; centred, it moves with the advantages of the others."""
    moved = torch.tensor([0.0, 0.0, 6.0, 2.0])  # A of three tokens and V
    assert DuelingQ().combine(moved).tolist() == [2, 2, 8]
    assert DuelingQ(centred=True).combine(moved).tolist() == [0, 0, 6]


def test_value_advantage_by_hand() -> None:
    # λ = ½: G_1 = 5, G_0 = ½·9 + ½·5 = 7. V: 7 and 9; V + A: 7 + 2 and 9 + 8.
    outputs = torch.cat([Q, V[..., None]], -1)
    values = (7 - 7) ** 2 + (9 - 5) ** 2 + (2 + 1) ** 2
    advantages = (9 - 7) ** 2 + (17 - 5) ** 2 + (2.5 + 1) ** 2
    assert _loss("value-advantage", outputs, decay=0.5) == pytest.approx((values + advantages) / 3)


def test_ilql_by_hand() -> None:
    outputs = torch.cat([Q, V[..., None]], -1)
    q = (2 - 9) ** 2 + (8 - 5) ** 2 + (0.5 + 1) ** 2
    # u = 2 − 7, 8 − 9, 0.5 − 2: all below, so each weighs 1 − τ.
    v = 0.1 * ((2 - 7) ** 2 + (8 - 9) ** 2 + (0.5 - 2) ** 2)
    sums = [sum(map(math.exp, one)) for one in ((1, 2, 3), (4, 6, 8), (0.5, 0, 0))]
    keep = sum(map(math.log, sums)) - (2 + 8 + 0.5)
    loss = _loss("ilql", outputs, expectile=0.9, conservative=0.3)
    assert loss == pytest.approx((q + v + 0.3 * keep) / 3)


def _folded(objective: Objective, outputs: list[float]) -> list[float]:
    """Q of one state, by the formula of each head."""
    if isinstance(objective, DuelingQ):
        *parts, value = outputs
        mean = sum(parts) / len(parts) if objective.centred else 0.0
        return [value + part - mean for part in parts]
    return outputs


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in ("q-exact", "q-sampled", "cd-q", "dueling-q")),
        *((name, {"decay": 0.7}) for name in ("q-exact", "q-sampled", "dueling-q")),
        ("dueling-q", {"centred": True}),
    ],
)
def test_q_against_loops(name: str, options: dict[str, float], seed: int) -> None:
    rollouts, objective = random_rollouts(seed), OBJECTIVES[name](**options)
    decay = options.get("decay", 0.0)
    rows = objective.collate(rollouts, 0)
    outputs = random_outputs(rows, VOCAB + (name == "dueling-q"), seed)
    log_pi0 = random_outputs(rows, VOCAB, seed + 100).log_softmax(-1)
    per_row = []
    for i, (prompt, completion, reward, *_) in enumerate(rollouts):
        errors, target = [], reward
        for t, token in reversed([*enumerate(completion)]):
            at = len(prompt) + t - 1
            if t + 1 < len(completion):
                after = _folded(objective, outputs[i, at + 1].tolist())
                if name == "q-sampled":
                    value = after[completion[t + 1]]
                else:
                    chances = log_pi0[i, at + 1].exp().tolist()
                    value = sum(p * q for p, q in zip(chances, after, strict=True))
                target = (1 - decay) * value + decay * target
            errors.append((_folded(objective, outputs[i, at].tolist())[token] - target) ** 2)
        per_row.append(errors)
    if name == "cd-q":
        expected = sum(0.5 * sum(errors) for errors in per_row) / len(per_row)
    else:
        expected = sum(map(sum, per_row)) / sum(map(len, per_row))
    assert objective.loss(outputs, rows, log_pi0).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_value_advantage_and_ilql_against_loops(seed: int) -> None:
    rollouts = random_rollouts(seed)
    ilql, parts = Ilql(0.8, 0.2), ValueAdvantage(0.6)
    rows = ilql.collate(rollouts, 0)
    outputs = random_outputs(rows, VOCAB + 1, seed)
    implicit, split = [], []
    for i, (prompt, completion, reward, *_) in enumerate(rollouts):
        at = [len(prompt) + t - 1 for t in range(len(completion))]
        values = [float(outputs[i, a, -1]) for a in at] + [reward]
        chosen = [float(outputs[i, a, y]) for a, y in zip(at, completion, strict=True)]
        mixed = reward
        for t in reversed(range(len(completion))):
            mixed = 0.4 * values[t + 1] + 0.6 * mixed
            split.append((values[t] - mixed) ** 2 + (values[t] + chosen[t] - mixed) ** 2)
            gap = chosen[t] - values[t]
            total = math.log(sum(math.exp(float(q)) for q in outputs[i, at[t], :-1]))
            implicit.append(
                (chosen[t] - values[t + 1]) ** 2
                + (0.2 if gap < 0 else 0.8) * gap**2
                + 0.2 * (total - chosen[t])
            )
    assert ilql.loss(outputs, rows).item() == pytest.approx(sum(implicit) / len(implicit), rel=1e-5)
    assert parts.loss(outputs, rows).item() == pytest.approx(sum(split) / len(split), rel=1e-5)


@pytest.mark.parametrize("name", ["q-exact", "q-sampled", "cd-q"])
def test_q_targets_carry_no_gradient(name: str) -> None:
    objective = OBJECTIVES[name]()
    rows = objective.collate([Rollout([0], [1, 2], 5.0)], 0)
    q = torch.tensor([[[1.0, 2.0, 3.0], [4.0, 6.0, 8.0], [0.0] * 3]], requires_grad=True)
    objective.loss(q, rows, LOG_PI0[:1, :3]).backward()
    assert q.grad is not None
    # Of each state only the token that came moves; the second's by its own error, 8 − 5, alone.
    assert (q.grad != 0).nonzero().tolist() == [[0, 0, 1], [0, 1, 2]]
    assert q.grad[0, 1, 2].item() == pytest.approx(8 - 5)  # 2·3 over two tokens, or ½·2·3


def test_ilql_and_value_advantage_stop_their_gradients() -> None:
    rows = Ilql().collate([Rollout([0], [1, 2], 5.0)], 0)
    outputs = torch.tensor(
        [[[1.0, 2.0, 3.0, 7.0], [4.0, 6.0, 8.0, 9.0], [0.0] * 4]], requires_grad=True
    )
    (grad,) = torch.autograd.grad(Ilql(0.9, 0.0).loss(outputs, rows), outputs)
    # Q(s_0, 1) = 2 → 9 and V(s_1) = 9 → 8 by its expectile, not by the first token's error.
    assert grad[0, :2].tolist() == [
        pytest.approx([0, 2 - 9, 0, 0.1 * (7 - 2)]),
        pytest.approx([0, 0, 8 - 5, 0.1 * (9 - 8)]),
    ]
    (grad,) = torch.autograd.grad(ValueAdvantage(0.0).loss(outputs, rows), outputs)
    # V_0 = 7 → 9, V_1 = 9 → 5; A only by its own error: 7 + 2 → 9 and 9 + 8 → 5.
    assert grad[0, :2].tolist() == [
        pytest.approx([0, 0, 0, 7 - 9]),
        pytest.approx([0, 0, 17 - 5, 9 - 5]),
    ]


def test_combinations_are_linear_and_say_what_is_served() -> None:
    one = torch.tensor([1.0, 2.0, 6.0, 10.0])
    assert DuelingQ().combine(one).tolist() == [11, 12, 16]
    assert DuelingQ(centred=True).combine(one).tolist() == [8, 9, 13]
    assert ValueAdvantage().combine(one).tolist() == [11, 12, 16]
    assert Ilql().combine(one).tolist() == [-9, -8, -4]
    other = torch.tensor([3.0, -1.0, 0.5, 2.0])
    for objective in (DuelingQ(), DuelingQ(centred=True), ValueAdvantage(), Ilql()):
        sum_first = objective.combine(2 * one - other)
        assert torch.allclose(
            sum_first, 2 * objective.combine(one) - objective.combine(other), atol=1e-5
        )


def test_the_exact_backup_asks_for_the_base() -> None:
    assert QExact.reads_base
    assert not QSampled.reads_base
    with pytest.raises(ValueError, match="needs log π0"):
        QExact().loss(Q, QExact().collate(TWO, 0))


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("ilql", {"expectile": 1.0}, "expectile"),
        ("ilql", {"expectile": 0.0}, "expectile"),
        ("ilql", {"conservative": -0.1}, "conservative"),
        ("value-advantage", {"decay": 1.5}, "λ"),
        ("q-exact", {"decay": -0.5}, "λ"),
    ],
)
def test_options_outside_are_refused(name: str, options: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        OBJECTIVES[name](**options)
