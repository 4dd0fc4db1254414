"""On the tiny world the served token-level decoder is held against what is exactly right."""

import json
import math
from pathlib import Path

import pytest
import torch

from trimtab.params import GuidanceParams
from trimtab_lab.arena import tiny as board
from trimtab_lab.arena.exact import (
    ScoreFunction,
    beta_at,
    decode,
    mean_reward,
    optimum,
    soft_value,
    total_variation,
)
from trimtab_lab.worlds.tiny import PROMPTS, Tiny


@pytest.fixture(scope="module", params=[0, 1])
def tiny(request: pytest.FixtureRequest) -> Tiny:
    return Tiny(request.param)


def everything(beta: float, **fields: object) -> GuidanceParams:
    """All tokens are candidates; with a smaller k, the others are cut."""
    cut = {"beta": beta, "k": 4, "mass": 1.0, "tail": "truncate"}
    return GuidanceParams.parse({**cut, **fields})


def value(tiny: Tiny) -> ScoreFunction:
    return lambda x, y, _: tiny.value(x, y)


@pytest.mark.parametrize("beta", [-3.0, 0.5, 2.0, 8.0])
def test_exact_soft_values_give_the_exact_optimum(tiny: Tiny, beta: float) -> None:
    p, kl = decode(tiny, soft_value(tiny), everything(beta))
    best, best_kl = optimum(tiny, beta)
    assert p.view(len(PROMPTS), -1).sum(1).tolist() == pytest.approx([1.0] * len(PROMPTS))
    assert total_variation(p, best) <= 1e-4
    assert float(kl) == pytest.approx(float(best_kl), abs=1e-5)
    # Mean values do not: this check can fail.
    mean, _ = decode(tiny, value(tiny), everything(beta))
    assert total_variation(mean, best) > (1e-4 if abs(beta) < 1 else 1e-2)


def test_without_strength_it_is_the_base(tiny: Tiny) -> None:
    p, kl = decode(tiny, value(tiny), everything(0.0))
    assert torch.allclose(p, tiny.probabilities, atol=1e-6)
    assert float(kl) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("score", ["value", "reward of the prefix"])
def test_theorem_3_of_pargs(tiny: Tiny, score: str) -> None:
    """Rashid et al., arXiv 2406.07780, Theorem 3: the decoder is a ratio of two RLHF policies.

    With π_i(y^{1:i} | x) ∝ π0(y^{1:i} | x)·exp(β·r(y^{1:i})) over prefixes of length i,
    π(y_i | x, y^{1:i−1}) ∝ π_i(y^{1:i} | x) / π_{i−1}(y^{1:i−1} | x), for whatever r.
    """
    beta = 2.0
    rewards = {
        "value": tiny.value,
        "reward of the prefix": lambda x, y: math.sin(sum(3 * t + 1 for t in y) + len(x)),
    }
    r = rewards[score]
    p, _ = decode(tiny, lambda x, y, _: r(x, y), everything(beta))
    decoded = dict(zip(tiny.finals, p.tolist(), strict=True))
    reach = {
        (x, y[:t]): 0.0 for x, y in tiny.finals for t in range(len(y) + 1)
    }  # under the decoder
    for (x, y), probability in decoded.items():
        for t in range(len(y) + 1):
            reach[x, y[:t]] += probability
    compared = 0
    for x in PROMPTS:
        for i in range(1, 5):
            prefixes = [y for a, y in tiny.states if a == x and len(y) == i]
            before = [y for a, y in tiny.states if a == x and len(y) == i - 1]
            now = _rlhf(tiny, x, prefixes, r, beta)
            then = _rlhf(tiny, x, before, r, beta)
            for parent in before:
                children = [y for y in prefixes if y[:-1] == parent]
                if not children:
                    continue
                ratios = torch.tensor([now[y] / then[parent] for y in children])
                policy = torch.tensor([reach[x, y] / reach[x, parent] for y in children])
                assert torch.allclose(ratios / ratios.sum(), policy, atol=1e-5)
                compared += 1
    assert compared > 50


def _rlhf(tiny: Tiny, x, prefixes, r, beta: float) -> dict:
    weights = {y: tiny.reach(x, y) * math.exp(beta * r(x, y)) for y in prefixes}
    z = sum(weights.values())
    return {y: w / z for y, w in weights.items()}


def test_candidates_cost_what_they_leave_out(tiny: Tiny) -> None:
    beta = 2.0
    best, _ = optimum(tiny, beta)
    gap = {
        k: total_variation(decode(tiny, soft_value(tiny), everything(beta, k=k))[0], best)
        for k in (1, 2, 3, 4)
    }
    assert gap[1] > gap[2] > gap[3] > gap[4]


def test_no_decoder_is_beyond_the_optimum(tiny: Tiny) -> None:
    for score in (value(tiny), soft_value(tiny)):
        for beta in (0.5, 1.0, 2.0, 4.0):
            for fields in ({}, {"k": 2}, {"k": 2, "tail": "mean"}):
                p, kl = decode(tiny, score, everything(beta, **fields))
                best = optimum(tiny, beta_at(tiny, float(kl)))[0]
                assert mean_reward(tiny, p) <= mean_reward(tiny, best) + 1e-5


def test_the_optimum_at_any_strength_and_the_strength_at_any_divergence(tiny: Tiny) -> None:
    sure, most = optimum(tiny, 1e4)
    bests = tiny.rewards.view(len(PROMPTS), -1).max(1).values
    assert mean_reward(tiny, sure) == pytest.approx(float(bests.mean()))
    for kl in (0.1, 1.0, 0.9 * float(most)):
        assert float(optimum(tiny, beta_at(tiny, kl))[1]) == pytest.approx(kl)
    assert beta_at(tiny, 1.1 * float(most)) == math.inf


def test_temperature_0_is_one_completion(tiny: Tiny) -> None:
    p, kl = decode(tiny, value(tiny), everything(2.0), temperature=0.0)
    assert sorted(p.tolist())[-len(PROMPTS) :] == [1.0] * len(PROMPTS)
    assert float(p.sum()) == len(PROMPTS)
    assert float(kl) > 0


def test_best_of_two_by_hand(tiny: Tiny) -> None:
    half = len(tiny.finals) // len(PROMPTS)
    p, rewards = tiny.probabilities[:half], tiny.rewards[:half]
    expected = torch.zeros(half, dtype=torch.float64)
    for i in range(half):
        for j in range(half):
            winners = [i, j] if rewards[i] == rewards[j] else [i if rewards[i] > rewards[j] else j]
            for winner in winners:
                expected[winner] += p[i] * p[j] / len(winners)
    assert torch.allclose(board.best_of(tiny, 2)[:half], expected, atol=1e-9)


def test_the_board_of_the_tiny_world(tiny: Tiny) -> None:
    results = board.run(tiny)
    assert all(one.reward <= one.optimum + 1e-5 for one in results)
    best = [one.efficiency for one in results if one.method == "soft value, all tokens"]
    assert best == pytest.approx([1.0] * len(board.BETAS), abs=1e-3)
    at = {(one.method, one.beta): one for one in results}
    assert at["VAS, tail cut", 4.0].efficiency > at["top-k", None].efficiency
    for n, one in zip((2, 4, 16, 64), [r for r in results if r.method == "best-of-N"], strict=True):
        # The bound that papers quote in place of the KL.
        assert one.kl <= math.log(n) - (n - 1) / n + 1e-9


@pytest.mark.slow
def test_the_report_of_the_tiny_world(tmp_path: Path) -> None:
    board.compare(tmp_path, "trimtab arena tiny")
    content = json.loads((tmp_path / "results.json").read_text())
    lines = [row for row in (tmp_path / "leaderboard.md").read_text().splitlines() if "|" in row]
    assert len(lines) == len(content["leaderboard"]) + 2
    assert (tmp_path / "frontier.png").stat().st_size > 10_000
