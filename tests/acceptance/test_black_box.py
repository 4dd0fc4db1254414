"""Answers over a black-box upstream have the in-process server's distribution."""

import asyncio
from collections import Counter

import numpy as np
import pytest
from scipy import stats
from transformers import AutoTokenizer
from upstream_over import ask, over

from trimtab_models import demo

pytestmark = pytest.mark.engine

N, OURS, CONTROLS, EACH = 1200, 600, 400, 8
"""Answers: the server's, ours over it, which take longer, and still fewer that must be noticed."""
TOP = 20


async def counted(ask_one, answers):
    """First two tokens of some answers, counted."""
    limit = asyncio.Semaphore(8)

    async def one(seed):
        async with limit:
            return await ask_one(seed)

    counts = Counter()
    for answer in await asyncio.gather(*(one(EACH * i) for i in range(answers // EACH))):
        counts.update(tuple(choice["token_ids"]) for choice in answer["choices"])
    return counts


def p_value(one, other):
    """Of the chi-square test that two counts are of one distribution, rare pairs together."""
    table = np.array([[c[pair] for pair in {*one, *other}] for c in (one, other)])
    often = table.sum(0) >= 20
    table = np.concatenate((table[:, often], table[:, ~often].sum(1, keepdims=True)), 1)
    return stats.chi2_contingency(table[:, table.sum(0) > 0]).pvalue


def undecided(server, prompt, **guided):
    """The prompt with an answer up to where guidance changes most, as token ids."""
    tokenizer = AutoTokenizer.from_pretrained(demo.base())
    ids = tokenizer(demo.chat(prompt), add_special_tokens=False).input_ids
    request = {"prompt_token_ids": ids, "seed": 0, "max_tokens": 40, "trace": True, **guided}
    (choice,) = server.generate(**request)["choices"]

    def moved(step):
        p = np.exp(np.array(step["guided_logprobs"]))
        return float((p * (step["guided_logprobs"] - np.array(step["logprobs"]))).sum())

    steps = [s for s in choice["guidance"]["trace"] if len(s["candidates"]) < TOP]
    at = max(steps, key=moved)["position"]
    return [*ids, *choice["token_ids"][:at]]


async def test_sampled_answers_have_the_engines_distribution(server):
    # Cut, since an upstream reveals only a part of a tail that stays.
    guided = {"scorers": {"sentiment": 1.0}, "beta": 2.0, "tail": "truncate"}
    prompt = undecided(server, demo.prompts("test", 1, seed=11)[0], **guided)
    body = {"prompt_token_ids": prompt, "n": EACH, "max_tokens": 2, "ignore_eos": True, **guided}
    async with over(server, max_in_flight=1024) as client:
        theirs = await counted(lambda s: asyncio.to_thread(server.generate, seed=s, **body), N)
        ours = await counted(lambda s: ask(client, seed=s, **body), OURS)
        control = await counted(lambda s: ask(client, seed=s, **body | {"beta": 1.0}), CONTROLS)
    assert len(theirs) > 1
    assert p_value(theirs, ours) > 1e-3
    assert p_value(theirs, control) < 1e-4  # another β is noticed
