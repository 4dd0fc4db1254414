"""Greedy guided text through the whole server equals the plain reference, token for token."""

from concurrent.futures import ThreadPoolExecutor
from itertools import product

import pytest
import torch
from reference import Reference
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from trimtab.params import GuidanceParams
from trimtab_models import demo

pytestmark = pytest.mark.engine

PROMPTS, TOKENS = 64, 16
SCORERS = [
    {"sentiment": 1.0},
    {"formality": 1.0},
    {"brevity": 1.0},
    {"sentiment": 1.0, "formality": 1.0, "brevity": 1.0},
    {"sentiment": -1.0},
]
SETTINGS = [
    {"scorers": scorers, "beta": 4.0, "tail": tail, **candidates}
    for scorers, tail, candidates in product(
        SCORERS, ["truncate", "mean"], [{"mass": 0.99}, {"mass": 1.0, "k": 10}]
    )
]


@pytest.fixture(scope="module")
def reference():
    torch.set_num_threads(2)
    base = AutoModelForCausalLM.from_pretrained(demo.base(), dtype=torch.float32)
    return Reference(base, demo.scorers())


@pytest.fixture(scope="module")
def prompts():
    tokenizer = AutoTokenizer.from_pretrained(demo.base())
    texts = demo.prompts("test", PROMPTS, seed=3)
    assert len(set(texts)) > PROMPTS // 2
    return [tokenizer(demo.chat(text), add_special_tokens=False).input_ids for text in texts]


def generate(server, requests):
    """All at once, 48 in flight, so that every setting meets every other in the engine."""

    def ask(request):
        choice = server.generate(max_tokens=TOKENS, temperature=0, **request)["choices"][0]
        return choice["token_ids"], choice["guidance"]

    with ThreadPoolExecutor(48) as pool:
        return list(pool.map(ask, requests))


def test_greedy_text_equals_the_reference(server, reference, prompts):
    pairs = [(prompt, setting) for prompt in prompts for setting in SETTINGS]
    requests = [{"prompt_token_ids": prompt, **setting} for prompt, setting in pairs]
    answers = generate(server, requests)
    eos = reference.base.config.eos_token_id
    different, steered = [], 0
    for (prompt, setting), (tokens, guidance) in tqdm(
        zip(pairs, answers, strict=True), total=len(pairs)
    ):
        expected, kl = reference.greedy(prompt, GuidanceParams.parse(setting), TOKENS, eos)
        steered += tokens != reference.greedy(prompt, GuidanceParams(beta=0.0), TOKENS, eos)[0]
        if tokens != expected or guidance["kl"] != pytest.approx(kl, rel=1e-3, abs=1e-3):
            different.append((prompt, setting, tokens, expected, guidance["kl"], kl))
    assert not different, different[:3]
    assert len(pairs) == 64 * 20
    assert steered > len(pairs) // 4  # else the comparison proves little


def test_beta_zero_is_no_guidance(server, prompts):
    """Token-equal, greedy and sampled with a seed, to the unguided completions route."""
    for prompt, temperature in product(prompts[:8], [0.0, 1.0]):
        fields = {"temperature": temperature, "seed": 11, "max_tokens": 24}
        guided = server.generate(prompt_token_ids=prompt, beta=0.0, **fields)["choices"][0]
        plain = server.http.post(
            "/v1/completions",
            json={"model": "demo", "prompt": prompt, "return_token_ids": True, **fields},
        ).json()["choices"][0]
        assert guided["token_ids"] == plain["token_ids"]
        assert guided["guidance"]["kl"] == 0
