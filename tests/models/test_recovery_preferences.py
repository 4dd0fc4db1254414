"""In the enumerable world each preference objective finds its exact limit.

Errors are root mean squares, states weighted by how often the base comes there, in log-odds of
preference; the limits themselves spread by 0.6 to 0.7, which is what a scorer that learnt nothing
would miss them by (`NOTHING`).
"""

import pytest
import torch
from torch import Tensor

from recovery import centred, distance, fit, outputs, train
from trimtab_lab.worlds.limits import bradley_terry
from trimtab_lab.worlds.tiny import PROMPTS, Prefix, Tiny, ended
from trimtab_models.objectives.bradley_terry import BradleyTerry, FullBradleyTerry
from trimtab_models.objectives.farma import Farma
from trimtab_models.objectives.genarm import GenArm
from trimtab_models.objectives.plackett_luce import PlackettLuce

pytestmark = pytest.mark.slow  # trains

SHARPNESS = 2.0
TOLERANCE = 0.1
NOTHING = 0.6


@pytest.fixture(scope="module")
def world() -> Tiny:
    return Tiny()


@pytest.fixture(scope="module")
def ends(world: Tiny) -> Tensor:
    return world.where(lambda x, y: ended(y))


@pytest.fixture(scope="module")
def inner(world: Tiny) -> Tensor:
    return world.where(lambda x, y: len(y) > 0 and not ended(y))


@pytest.fixture(scope="module")
def reward(world: Tiny) -> Tensor:
    """sharpness·R at the ends: the limit of all that compares whole completions."""
    return SHARPNESS * world.table(world.value)


def _error(world: Tiny, learnt: Tensor, limit: Tensor, where: Tensor) -> float:
    """Distance up to a constant for each prompt."""
    return distance(world, centred(world, learnt, where), centred(world, limit, where), where)


def _at_ends(world: Tiny, scores: Tensor) -> Tensor:
    """Scores of whole completions, [finals], as those of states, [states]; 0 on prefixes."""
    number = {final: i for i, final in enumerate(world.finals)}
    return world.table(lambda x, y: scores[number[x, y]] if ended(y) else 0.0)


def test_on_prefixes_partial_bradley_terry_finds_lemma_2_and_the_full_one_nothing(
    world: Tiny, ends: Tensor, inner: Tensor, reward: Tensor
) -> None:
    limit = bradley_terry(world, SHARPNESS)
    partial = fit(world, BradleyTerry(), sharpness=SHARPNESS)[:, 0]
    assert _error(world, partial, limit, ends | inner) < TOLERANCE
    assert _error(world, 0 * limit, limit, ends | inner) > NOTHING

    full = fit(world, FullBradleyTerry(), sharpness=SHARPNESS)[:, 0]
    assert _error(world, full, reward, ends) < TOLERANCE
    # Theorem 1: the same loss leaves the prefixes wherever they began, here at 0.
    assert bool((full[inner] == 0).all())
    assert _error(world, full, limit, inner) > 5 * _error(world, partial, limit, inner)


def test_a_network_errs_on_prefixes_more_when_whole_sequences_teach_it(
    world: Tiny, inner: Tensor
) -> None:
    limit = bradley_terry(world, SHARPNESS)
    errors = {}
    for objective in (BradleyTerry(), FullBradleyTerry()):
        model = train(world, objective, sharpness=SHARPNESS, steps=120)
        errors[type(objective)] = _error(world, outputs(world, model)[:, 0], limit, inner)
    assert errors[BradleyTerry] < 0.3
    assert errors[FullBradleyTerry] > 2 * errors[BradleyTerry]


def test_a_share_of_the_prefixes_finds_the_same_limit(world: Tiny, inner: Tensor) -> None:
    some = fit(world, BradleyTerry(ratio=0.5), sharpness=SHARPNESS)[:, 0]
    limit = bradley_terry(world, SHARPNESS)
    assert _error(world, some, limit, inner) < TOLERANCE


def test_genarm_finds_a_likelihood_that_is_the_reward(
    world: Tiny, ends: Tensor, reward: Tensor
) -> None:
    beta = 0.5
    logits = fit(world, GenArm(beta), sharpness=SHARPNESS).log_softmax(-1)
    number = {state: i for i, state in enumerate(world.states)}
    likelihoods = torch.stack(
        [
            torch.stack([logits[number[x, y[:t]], y[t]] for t in range(len(y))]).sum()
            for x, y in world.finals
        ]
    )
    assert _error(world, _at_ends(world, beta * likelihoods), reward, ends) < TOLERANCE
    # Not by staying near the base, whose likelihoods are no reward.
    base = _at_ends(world, beta * world.probabilities.log())
    assert _error(world, base, reward, ends) > NOTHING


def test_farma_finds_the_best_continuation(
    world: Tiny, ends: Tensor, inner: Tensor, reward: Tensor
) -> None:
    q = fit(world, Farma(), sharpness=SHARPNESS)
    number = {state: i for i, state in enumerate(world.states)}

    def learnt(x: Prefix, y: Prefix) -> Tensor | float:
        return q[number[x, y[:-1]], y[-1]] if y else 0.0

    def best(x: Prefix, y: Prefix) -> float:
        return SHARPNESS * float(world.returns(x, y)[0].max())

    values = world.table(learnt)
    assert _error(world, values, reward, ends) < TOLERANCE
    assert _error(world, values, world.table(best), ends | inner) < 1.5 * TOLERANCE
    # It is the best and not the mean that a prefix is worth.
    assert _error(world, values, reward, inner) > 3 * TOLERANCE


def _ranks(world: Tiny, objective: PlackettLuce, table: Tensor) -> Tensor:
    number = {state: i for i, state in enumerate(world.states)}
    steps = world.rows.mask().shape[1]
    at = torch.tensor(
        [[number[x, y[: min(t + 1, len(y))]] for t in range(steps)] for x, y in world.finals]
    )
    return objective.aggregate(table[at].sigmoid(), world.rows)


@pytest.mark.parametrize("aggregation", ["sum", "average"])
def test_plackett_luce_finds_the_rankings(
    world: Tiny, ends: Tensor, reward: Tensor, aggregation: str
) -> None:
    # An average of numbers in (0, 1) can say any reward once C is wide enough; a sum cannot say
    # that a short completion is far better than a long one.
    objective = PlackettLuce(aggregation, **({} if aggregation == "sum" else {"scale": 8.0}))
    table = fit(world, objective, sharpness=SHARPNESS, k=4)[:, 0]
    scores = _ranks(world, objective, table)
    error = _error(world, _at_ends(world, scores), reward, ends)
    half = len(world.finals) // len(PROMPTS)
    chances = []
    for utility in (scores, SHARPNESS * world.rewards):
        each = utility.view(len(PROMPTS), half)
        chances.append((each[:, :, None] - each[:, None]).sigmoid())
    weights = world.probabilities.view(len(PROMPTS), half)
    weights = weights[:, :, None] * weights[:, None]
    wrong = float((weights * (chances[0] - chances[1]).abs()).sum() / weights.sum())
    assert wrong < (0.02 if aggregation == "average" else 0.08)
    assert (error < TOLERANCE) == (aggregation == "average")
