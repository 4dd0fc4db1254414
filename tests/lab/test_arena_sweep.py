"""What a sweep recommends: chosen on one half, judged on the other."""

import numpy as np
import pytest

from arena_fakes import FakeBench
from trimtab.errors import TrimtabError
from trimtab_lab.arena.method import Method
from trimtab_lab.arena.runs import Run
from trimtab_lab.arena.sweep import markdown, recommend


def run(name, rewards, kl, beta=1.0, kl_tail=()):
    rewards = np.array(rewards, dtype=float)[:, None]
    made = FakeBench().run(Method(name, ""), beta)
    settings = {"guidance": {"beta": beta}}
    fields = {**vars(made), "settings": settings, "rewards": {"reward": rewards}}
    own = {"kl": np.full(rewards.shape, float(kl)), "kl_tail": kl_tail}
    return Run(**{**fields, **own})


def halves(first, second):
    """Rewards of twenty prompts: those of even number, and the others, a little noisy."""
    noise = 0.01 * np.random.default_rng(0).normal(size=20)
    return np.array([first, second] * 10) + noise


BASE = run("base", halves(0.0, 0.0), 0.0)


def test_what_only_looks_good_is_not_sold_as_good():
    lucky, steady = run("lucky", halves(0.9, -0.1), 1), run("steady", halves(0.5, 0.5), 1)
    advice = recommend(BASE, [lucky, steady], None)
    assert advice.candidates == "lucky"
    assert advice.reward.mean == pytest.approx(-0.1, abs=0.02)
    assert str(advice).startswith("No setting is better than the base")
    advice = recommend(BASE, [steady], None)
    assert advice.reward.mean == pytest.approx(0.5, abs=0.02)
    assert str(advice).startswith("Recommended: β = 1 with steady. On 10 held-out prompts")


def test_a_budget_is_kept():
    cheap, dear = run("cheap", halves(0.5, 0.5), 1, 2.0), run("dear", halves(0.9, 0.9), 3, 4.0)
    assert recommend(BASE, [cheap, dear], None).candidates == "dear"
    advice = recommend(BASE, [cheap, dear], 2.0)
    assert (advice.candidates, advice.beta, advice.kl) == ("cheap", 2.0, 1.0)
    with pytest.raises(TrimtabError, match=r"within 0\.5 nats; the least is 1\.00"):
        recommend(BASE, [cheap, dear], 0.5)


def test_a_hint_where_most_nats_pay_for_the_cut():
    good = halves(0.5, 0.5)
    dear = run("dear", good, 4, kl_tail=np.full((20, 1), 3.0))
    message = str(recommend(BASE, [dear], None))
    assert "3.00 of 4.00 nats, pays for cutting the tail" in message
    fine = run("fine", good, 4, kl_tail=np.full((20, 1), 1.0))
    for one in (fine, run("older", good, 4)):
        assert "cutting the tail" not in str(recommend(BASE, [one], None))
    table = markdown(recommend(BASE, [dear], None), BASE, [dear, fine], None)
    assert "| 4.00 | 3.00 |" in table
    assert "| 4.00 | 1.00 |" in table
