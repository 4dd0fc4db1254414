"""The demo's scorers steer, by the exact rewards: 100 sampled prompts per setting.

`benchmarks/steering.py` measures the same at length, ARGS and k = 10 beside it.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scipy import stats

from trimtab_models import demo

pytestmark = pytest.mark.engine

N = 100
PROMPTS = demo.prompts("test", N, seed=5)


@pytest.fixture(scope="module")
def rewards(server):
    """Rewards of 100 answers under a setting, [prompts], for each of the three oracles."""

    def run(**guidance):
        def ask(i):
            messages = [{"role": "user", "content": PROMPTS[i]}]
            answer = server.generate(messages=messages, seed=i, max_tokens=96, **guidance)
            return answer["choices"][0]

        with ThreadPoolExecutor(32) as pool:
            choices = list(pool.map(ask, range(N)))
        samples = {
            name: np.array([reward(p, c["text"]) for p, c in zip(PROMPTS, choices, strict=True)])
            for name, reward in demo.rewards.items()
        }
        return samples, np.array([choice["guidance"]["kl"] for choice in choices])

    return run


@pytest.fixture(scope="module")
def base(rewards):
    return rewards(beta=0.0)[0]


@pytest.mark.parametrize("name", demo.rewards)
def test_reward_is_monotone_in_beta(rewards, base, name):
    means, divergences = [], []
    for beta in (-4, -2, 0, 2, 4):
        samples, kl = (base, np.zeros(N)) if beta == 0 else rewards(scorers={name: 1.0}, beta=beta)
        means.append(samples[name].mean())
        divergences.append(kl.mean())
        error = stats.sem(samples[name])
        print(f"{name} β={beta}: {means[-1]:.3f} ± {error:.3f}, KL {divergences[-1]:.2f} (n={N})")
    assert means == sorted(means)
    assert len(set(means)) == 5
    gap = demo.REWARD_MAX[name] - means[2]
    assert means[4] - means[2] >= gap / 2
    assert divergences[4] > divergences[3] > 0


def test_composing_all_three_raises_all_three(rewards, base):
    samples, _ = rewards(scorers=dict.fromkeys(demo.rewards, 1.0), beta=4.0)
    for name, values in samples.items():
        test = stats.wilcoxon(values, base[name], alternative="greater")
        assert test.pvalue < 0.01, name


def test_a_negative_weight_is_a_negative_beta(rewards):
    """The control for both signs: token by token they are the same request."""
    one, _ = rewards(scorers={"sentiment": -1.0}, beta=2.0)
    other, _ = rewards(scorers={"sentiment": 1.0}, beta=-2.0)
    assert np.array_equal(one["sentiment"], other["sentiment"])
