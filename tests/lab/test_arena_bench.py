"""What the bench measures of a real engine's answers."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
from conftest import json_lines
from transformers import AutoModelForCausalLM, AutoTokenizer

from trimtab_lab.worlds import WORLDS
from trimtab_models import demo

pytest.importorskip("vllm")
pytestmark = pytest.mark.engine
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    lines = json_lines(HERE / "arena_engine.py", tmp_path_factory.mktemp("bench"), env=env)
    return {line["method"]: line for line in lines}


def mean(run, name):
    return np.mean(run[name])


def test_the_base_spends_nothing(runs):
    base = runs["base"]
    assert np.all(np.array(base["kl"]) == 0)
    assert np.shape(base["kl"]) == (12, 2)
    size = AutoModelForCausalLM.from_pretrained(demo.base()).num_parameters()
    tokenizer = AutoTokenizer.from_pretrained(demo.base())
    prompts = WORLDS["reviews"].prompts("test", 12, 0)
    read = sum(map(len, tokenizer(prompts, add_special_tokens=False).input_ids)) / (12 * 2)
    assert base["flops"] == pytest.approx(2 * size * (read + mean(base, "tokens")))
    assert base["scorer_tokens"] == 0


def test_rewards_are_those_of_the_texts(runs):
    for name in ("base", "pargs", "best-of-4"):
        first = [row[0] for row in runs[name]["rewards"]["sentiment"]]
        wanted = [demo.rewards["sentiment"]("", text) for text in runs[name]["texts"]]
        np.testing.assert_allclose(first, wanted)


def test_top_k_needs_no_scorer_but_moves_the_distribution(runs):
    run = runs["top-k 10"]
    assert mean(run, "kl") > 0.1
    assert run["scorer_tokens"] == 0


def test_guidance_is_paid_by_the_candidate(runs):
    run, base = runs["pargs"], runs["base"]
    assert np.mean(run["rewards"]["sentiment"]) > np.mean(base["rewards"]["sentiment"]) + 0.3
    assert 0.3 < mean(run, "kl") < 8
    # k = 10 candidates a token, and prompts and chosen tokens besides.
    assert 9 * run["drawn_tokens"] < run["scorer_tokens"] < 14 * run["drawn_tokens"]


def test_a_greedy_answer_costs_its_log_probability(runs):
    run = runs["pargs-greedy"]
    assert np.shape(run["kl"]) == (12, 1)
    assert np.min(run["kl"]) > 1
    assert math.isnan(run["diversity"])


def test_the_base_sampled_more_sharply_has_a_known_kl(runs):
    for name in ("temperature", "top-p"):
        kl = np.array(runs[name]["kl"])
        assert kl.shape == (12, 2)
        assert kl.min() > 0
    assert runs["temperature"]["settings"]["temperature"] == 0.5
    assert runs["top-p"]["settings"]["top_p"] == 0.8
    # The nucleus has lost at most 1 − p of the mass: KL ≤ −log p a token.
    assert np.all(np.array(runs["top-p"]["kl"]) <= -math.log(0.8) * 97)
    assert np.shape(runs["greedy"]["kl"]) == (12, 1)
    assert runs["greedy"]["scorer_tokens"] == 0


def test_ranks_under_guidance_that_moves_nothing_are_the_bases(runs):
    ranks = runs["ranks"]
    assert ranks["guided"] == pytest.approx(ranks["plain"])
    assert min(ranks["plain"]) < 1 / 4, "some tokens are in the tail of the four candidates"


def test_best_of_n_pays_for_all_it_drew(runs):
    run = runs["best-of-4"]
    np.testing.assert_allclose(run["kl"], math.log(4) - 3 / 4, rtol=1e-4)
    assert run["drawn_tokens"] == run["facts"]["usage"]["drawn_tokens"]
    assert 2.5 < run["drawn_tokens"] / mean(run, "tokens") < 8
    assert run["flops"] > 3 * runs["base"]["flops"]


def test_base_samples_are_the_bases(runs):
    samples = runs["samples"]
    assert all(shape == [12, 20] for shape in samples["shapes"].values())
    assert set(samples["shapes"]) == {"consistency", "sentiment", "formality", "brevity", "tokens"}
    assert samples["means"]["sentiment"] == pytest.approx(
        np.mean(runs["base"]["rewards"]["sentiment"]), abs=0.5
    )
