"""Answers for refinement: how strongly they are guided, and what is written of them."""

import numpy as np
import pytest

from trimtab.sampling import log_ratios
from trimtab_lab.arena import refine
from trimtab_lab.arena.prepare import _with_firsts
from trimtab_lab.arena.scale import QUICK_SCALE
from trimtab_lab.arena.task import load
from trimtab_models import data


def spent(rewards, beta):
    """KL of the rewards' tilted distribution, by a loop."""
    weights = np.exp(beta * rewards) / np.exp(beta * rewards).sum()
    return float(sum(w * np.log(w * len(rewards)) for w in weights))


def test_strengths_are_those_of_the_optimum_at_their_nats():
    rewards = np.random.default_rng(0).normal(0, 0.2, 20_000).clip(-1, 1)
    for beta, kl in zip(refine.strengths(rewards), refine.KLS, strict=True):
        assert spent(rewards, beta) == pytest.approx(kl, abs=0.01)


def test_no_more_nats_are_requested_than_there_are():
    """A success in four: the very best answers are log 4 nats away."""
    rewards = np.array([1.0, 0.0, 0.0, 0.0] * 100)
    for beta, kl in zip(
        refine.strengths(rewards), (1.0, refine.MAX_SHARE * np.log(4)), strict=True
    ):
        assert spent(rewards, beta) == pytest.approx(kl, abs=0.01)


def test_guided_answers_stand_beside_the_bases(tmp_path, monkeypatch):
    task = load("reviews")
    reward = task.world.rewards["consistency"]
    base = [{"prompt": "p", "completion": "Great. I love it.", "reward": r} for r in (0.0, 0.5, 1)]
    (tmp_path / "data").mkdir()
    data.write(tmp_path / "data" / "consistency-rollouts.jsonl", base)
    calls = []

    def sample(task, out, scale, scorer, betas, seed):
        calls.append((scorer.name, len(betas), seed))
        return [{"prompt": "p", "completion": "Awful. I regret it.", "strength": b} for b in betas]

    monkeypatch.setattr(refine, "_sample", sample)
    arguments = (task, tmp_path, QUICK_SCALE, "distribution-base", "consistency")
    path = refine.guided(*arguments)
    written = list(data.read(path))
    assert written[:3] == base
    assert [record["reward"] for record in written[3:]] == [reward("p", "Awful. I regret it.")] * 2
    assert all(record["strength"] > 0 for record in written[3:])
    assert refine.guided(*arguments) == path
    assert calls == [("distribution-base", 2, 1)], "what is there is not drawn again"
    second = refine.guided(task, tmp_path, QUICK_SCALE, "distribution", "consistency")
    assert list(data.read(second))[:-2] == written
    assert calls[1:] == [("distribution", 2, 3)]


def test_what_guidance_did_to_each_token_is_read_off_the_trace():
    """Candidates 4 and 5, of probability 0.3 and 0.5; scores 1 and 3; the tail gets their mean."""
    pi0, bonus, mean = np.array([0.3, 0.5]), np.array([1.0, 3.0]), 2.0
    log_z = np.log((pi0 * np.exp(bonus)).sum() + 0.2 * np.exp(mean))
    step = {
        "candidates": [4, 5],
        "logprobs": list(np.log(pi0)),
        "guided_logprobs": list(np.log(pi0) + bonus - log_z),
    }
    ratios = log_ratios([{**step, "token": token} for token in (5, 4, 9)])
    assert ratios == pytest.approx([3 - log_z, 1 - log_z, mean - log_z])
    assert 0.3 * np.exp(ratios[1]) + 0.5 * np.exp(ratios[0]) + 0.2 * np.exp(ratios[2]) == (
        pytest.approx(1)
    )


def test_what_is_refined_comes_first(tmp_path):
    task = load("reviews")
    wanted = _with_firsts(task, tmp_path, ["td-lambda", "distribution"])
    assert wanted == ["distribution-base", "td-lambda", "distribution"]
    (tmp_path / "scorers" / "distribution-base").mkdir(parents=True)
    assert _with_firsts(task, tmp_path, ["distribution"]) == ["distribution"]
    narrow = load("sums")
    assert _with_firsts(narrow, tmp_path, ["q-distribution-twice"]) == [
        "q-distribution-base", "q-distribution", "q-distribution-twice"
    ]  # fmt: skip
