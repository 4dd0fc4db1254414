"""Steering by returns to go is the optimum of the whole return, exactly, on the tiny world."""

from functools import cache

import pytest
import torch

from trimtab.params import GuidanceParams
from trimtab_lab.arena.exact import ScoreFunction, decode, optimum, soft_value, total_variation
from trimtab_lab.worlds.tiny import VOCABULARY, Prefix, Tiny, ended, reward, step_reward


def everything(beta: float) -> GuidanceParams:
    return GuidanceParams.parse({"beta": beta, "k": 4, "mass": 1.0, "tail": "truncate"})


def to_go(tiny: Tiny, *, own: bool) -> ScoreFunction:
    """(1/c)·log E exp(c·return to go), by a backward programme; with the last token's if `own`."""
    chances = dict(zip(tiny.states, tiny.at(tiny.log_pi0).exp(), strict=True))

    @cache
    def later(x: Prefix, y: Prefix, c: float) -> float:
        if ended(y):
            return reward(x, y)
        nexts = [step_reward(x, (*y, v)) + later(x, (*y, v), c) for v in range(VOCABULARY)]
        return float((torch.tensor(nexts).double() * c + chances[x, y].log()).logsumexp(0)) / c

    return lambda x, y, c: later(x, y, c) + (step_reward(x, y) if own else 0.0)


@pytest.mark.parametrize("beta", [-2.0, 0.5, 3.0])
def test_returns_to_go_steer_to_the_optimum_of_the_whole_return(beta: float) -> None:
    tiny = Tiny().stepwise()
    best, best_kl = optimum(tiny, beta)
    policy, kl = decode(tiny, to_go(tiny, own=True), everything(beta))
    assert total_variation(policy, best) <= 1e-4
    assert float(kl) == pytest.approx(float(best_kl), abs=1e-4)
    # As do values of the whole return, which contain the reward so far.
    whole, _ = decode(tiny, soft_value(tiny), everything(beta))
    assert total_variation(whole, best) <= 1e-4
    # The control: a candidate's own reward must be in its score.
    without, _ = decode(tiny, to_go(tiny, own=False), everything(beta))
    assert total_variation(without, best) > 0.05
