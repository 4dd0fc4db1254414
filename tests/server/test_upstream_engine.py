"""The black-box base over a real vLLM server, by token ids: what the in-process server says."""

import asyncio
from collections import Counter

import httpx
import numpy as np
import pytest
from conftest import KEY
from scipy import stats

from trimtab_models import demo
from trimtab_server import settings
from trimtab_server.upstream.app import build

PROMPTS = demo.prompts("test", 6, seed=11)
TOP = 20


@pytest.fixture
async def over(server):
    """A client of our application, whose upstream is the session's server."""
    given = {
        "upstream": f"{server.url}/v1",
        "upstream_model": "demo",
        "upstream_key": KEY,
        "tokenizer": str(demo.base()),
        "scorer": [f"{name}={path}" for name, path in demo.scorers().items()],
    }

    apps = []

    def made(**more):
        apps.append(build(settings.load({**given, **more})))
        return httpx.AsyncClient(transport=httpx.ASGITransport(apps[-1]), base_url="http://us")

    yield made
    for app in apps:
        await app.state.upstream.decoder.close()


async def ask(client, **fields):
    answer = await client.post("/generate", json=fields, timeout=120)
    assert answer.status_code == 200, answer.text
    return answer.json()


def asked_for(prompt, **fields):
    return {"messages": [{"role": "user", "content": prompt}], **fields}


@pytest.mark.engine
async def test_greedy_answers_are_the_engines_own(server, over):
    one, block = over(), over(upstream_block=8)
    compared = 0
    for i, prompt in enumerate(PROMPTS):
        scorers = {"sentiment": 1.0, "brevity": -0.5} if i % 2 else {"sentiment": -1.0}
        guided = {"scorers": scorers, "beta": 3.0, "temperature": 0, "max_tokens": 40}
        body = asked_for(prompt, **guided, trace=True)
        engine = server.generate(**body)["choices"][0]
        needed = max(len(step["candidates"]) for step in engine["guidance"]["trace"])
        if needed > TOP:
            continue
        compared += 1
        for client in (one, block):
            ours = (await ask(client, **body))["choices"][0]
            assert ours["token_ids"] == engine["token_ids"]
            assert ours["text"] == engine["text"]
            assert ours["finish_reason"] == engine["finish_reason"]
            mine, theirs = ours["guidance"], engine["guidance"]
            assert set(mine) == {*theirs, "unrevealed"}
            for name in ("kl", "scores", "steps", "scored_steps", "scored_tokens"):
                assert mine[name] == pytest.approx(theirs[name], abs=2e-3), name
            assert 0 <= mine["unrevealed"] < 0.2
    assert compared >= 3


@pytest.mark.engine
async def test_openai_routes_over_the_engine(server, over):
    guidance = {"scorers": {"sentiment": 1.0}, "beta": 3.0}
    chat = asked_for(PROMPTS[0], temperature=0, max_tokens=24, guidance=guidance)
    engine = server.http.post("/v1/chat/completions", json=chat).json()["choices"][0]
    ours = (await over().post("/v1/chat/completions", json=chat)).json()["choices"][0]
    assert ours["message"]["content"] == engine["message"]["content"]
    text = {"prompt": "The room was", "temperature": 0, "max_tokens": 12}
    engine = server.http.post("/v1/completions", json=text).json()["choices"][0]
    ours = (await over().post("/v1/completions", json=text)).json()["choices"][0]
    assert ours["text"] == engine["text"]
    assert "guidance" not in ours


async def sampled(ask_one, answers, **fields):
    """First two tokens of some answers, eight a request, counted."""
    counts = Counter()
    for answer in await asyncio.gather(
        *(ask_one(seed=8 * i, **fields) for i in range(answers // 8))
    ):
        counts.update(tuple(choice["token_ids"]) for choice in answer["choices"])
    return counts


@pytest.mark.engine
async def test_sampled_answers_have_the_engines_distribution(server, over):
    """2,000 answers of two tokens from each: a chi-square test of the pairs."""
    client = over(upstream_concurrency=32)
    fields = asked_for(PROMPTS[1], scorers={"sentiment": 1.0}, beta=2.0, k=16, n=8, max_tokens=2)
    limit = asyncio.Semaphore(16)

    async def engine(seed, **more):
        async with limit:
            return await asyncio.to_thread(server.generate, seed=seed, **more)

    async def ours(seed, **more):
        async with limit:
            return await ask(client, seed=seed, **more)

    async def control(seed, **more):
        return await ours(seed, **{**more, "beta": 1.0})

    theirs = await sampled(engine, 2000, **fields)

    def p_value(counts):
        pairs = sorted({*theirs, *counts}, key=lambda pair: -(theirs[pair] + counts[pair]))
        table = np.array([[c[pair] for pair in pairs] for c in (theirs, counts)])
        often = table.sum(0) >= 20
        table = np.concatenate((table[:, often], table[:, ~often].sum(1, keepdims=True)), 1)
        return stats.chi2_contingency(table[:, table.sum(0) > 0]).pvalue

    assert p_value(await sampled(ours, 2000, **fields)) > 1e-3
    assert p_value(await sampled(control, 2000, **fields)) < 1e-6  # another β is noticed
