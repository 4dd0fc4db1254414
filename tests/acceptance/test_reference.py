"""Greedy guided text through the whole server equals the plain reference, token for token."""

from concurrent.futures import ThreadPoolExecutor
from itertools import product

import pytest
from transformers import AutoTokenizer

from expected import SETTINGS, TOKENS, all_answers
from trimtab_models import demo

pytestmark = pytest.mark.engine

PROMPTS = 64


@pytest.fixture(scope="module")
def prompts():
    tokenizer = AutoTokenizer.from_pretrained(demo.base())
    texts = demo.prompts("test", PROMPTS, seed=3)
    assert len(set(texts)) > PROMPTS // 2
    return [tokenizer(demo.chat(text), add_special_tokens=False).input_ids for text in texts]


def test_greedy_text_equals_the_reference(server, prompts):
    """64 prompts × 5 mixtures × both tails × both ways to choose candidates, all at once."""

    def ask(request):
        prompt, setting = request
        fields = {"prompt_token_ids": prompt, "max_tokens": TOKENS, "temperature": 0, **setting}
        choice = server.generate(**fields)["choices"][0]
        return choice["token_ids"], choice["guidance"]["kl"]

    with ThreadPoolExecutor(48) as pool:
        served = list(pool.map(ask, product(prompts, SETTINGS)))
    assert len(served) == 64 * 20
    different, steered = [], 0
    served = iter(served)
    for prompt, (guided, unguided) in zip(prompts, all_answers(prompts), strict=True):
        for setting, (tokens, kl) in zip(SETTINGS, guided, strict=True):
            answer, answer_kl = next(served)
            steered += answer != unguided
            if answer != tokens or answer_kl != pytest.approx(kl, rel=1e-3, abs=1e-3):
                different.append((prompt, setting, answer, tokens, answer_kl, kl))
    assert not different, (len(different), different[:3])
    assert steered > 64 * 20 // 4  # else the comparison proves little


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
