"""Models that the base was not made with steer it, by the exact rewards.

A DeBERTa-v2 and a RoBERTa classifier and a GPT-NeoX value, each with a tokenizer of its own,
trained here; the demo's native scorers beside them. 60 test prompts, two answers each.
"""

from pathlib import Path

import numpy as np
import pytest
from conftest import json_lines
from scipy import stats

from trimtab_models.demo import foreign

pytestmark = pytest.mark.engine

HERE = Path(__file__).parent
STEPS = 150


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("foreign")
    for kind in foreign.REWARDS:
        foreign.build(kind, root / kind, steps=STEPS)
    lines = json_lines(HERE / "foreign_engine.py", root, timeout=900)
    return {line["name"]: line for line in lines}


@pytest.mark.parametrize("name", foreign.REWARDS)
def test_the_exact_reward_rises_as_with_the_native_scorer(runs, name):
    reward = foreign.REWARDS[name]
    base, own, native = (np.array(runs[run]["rewards"][reward]) for run in ("base", name, reward))
    print(f"{name}: {own.mean():.3f}, base {base.mean():.3f}, native {native.mean():.3f} (n=60)")
    assert stats.wilcoxon(own, base, alternative="greater").pvalue < 1e-6
    assert own.mean() - base.mean() >= (native.mean() - base.mean()) / 2
    assert runs[name]["kl"] > 0.2


def test_a_scorer_raises_what_it_was_trained_for(runs):
    """The control: the other reward moves less."""
    base = {reward: np.mean(values) for reward, values in runs["base"]["rewards"].items()}
    for name, reward in foreign.REWARDS.items():
        gains = {r: np.mean(v) - base[r] for r, v in runs[name]["rewards"].items()}
        assert max(gains, key=gains.__getitem__) == reward, name
