"""Probes over HTTP, on the real engine: from the base's states in vLLM's own forward."""

import pytest
import torch
from reference import Reference
from transformers import AutoModelForCausalLM

from trimtab.params import GuidanceParams
from trimtab_models import demo

TEXT = "<|user|>Write a review of a hotel.<|end|><|assistant|>"
FIELDS = {
    "prompt": TEXT,
    "scorers": {"probe": 1.0},
    "beta": 6.0,
    "temperature": 0,
    "max_tokens": 12,
}

SIZES = {
    "best_of_n": {"n": 4},
    "smc": {"particles": 4, "block": 4},
    "mcts": {"simulations": 2},
}
"""Searches, with their sizes."""


@pytest.fixture(scope="module")
def reference(probe):
    base = AutoModelForCausalLM.from_pretrained(demo.base(), dtype=torch.float32)
    return Reference(base, {"probe": probe})


def test_greedy_answers_equal_the_reference(server, reference):
    [choice] = server.generate(**FIELDS)["choices"]
    ids = server.http.post("/tokenize", json={"prompt": TEXT, "model": "demo"}).json()["tokens"]
    params = GuidanceParams(scorers={"probe": 1.0}, beta=6.0)
    tokens, kl = reference.greedy(ids, params, 12, eos=choice["token_ids"][-1])
    assert choice["token_ids"] == tokens
    assert choice["guidance"]["kl"] == pytest.approx(kl, rel=1e-2)
    final = reference.scores("probe", [*ids, *tokens[:-1]], tokens[-1:], params, len(ids))
    assert choice["guidance"]["scores"]["probe"] == pytest.approx(final[0], abs=1e-3)
    assert tokens != server.generate(**{**FIELDS, "beta": 0})["choices"][0]["token_ids"]


def test_the_whole_vocabulary(server):
    [choice] = server.generate(**{**FIELDS, "trace": True}, k="all")["choices"]
    record = choice["guidance"]
    assert record["scored_tokens"] == 1024 * len(choice["token_ids"])
    assert record["kl_tail"] == 0
    assert len(record["trace"][0]["candidates"]) == 32
    answer = server.http.post("/generate", json={**FIELDS, "k": "all", "scorers": {"sentiment": 1}})
    assert answer.status_code == 400
    assert "k 'all' needs scorers that score the whole vocabulary" in answer.text
    for k in ("some", 0, 1.5, True):
        answer = server.http.post("/generate", json={**FIELDS, "k": k})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "k"


def test_a_budget_beside_a_network(server):
    """With two scorers of return distributions, or a floor, strengths are set at each step."""
    sampled = {**FIELDS, "temperature": 1, "seed": 3}
    del sampled["beta"]
    [choice] = server.generate(**sampled, kl_budget=2.0)["choices"]
    assert 0 < choice["guidance"]["kl"] < 8
    assert choice["guidance"]["beta"]["mean"] > 0
    [choice] = server.generate(**sampled, floors={"probe": 0.9})["choices"]
    assert choice["guidance"]["duals"]["probe"]["mean"] > 0


@pytest.mark.parametrize("beta", [0.0, 2.0])
@pytest.mark.parametrize("method", list(SIZES))
def test_searches_read_the_states_of_their_draws(server, reference, method, beta):
    sizes = SIZES[method]
    fields = {**FIELDS, "temperature": 1, "seed": 1, "beta": beta}
    [choice] = server.generate(**fields, search={"method": method, **sizes})["choices"]
    ids = server.http.post("/tokenize", json={"prompt": TEXT, "model": "demo"}).json()["tokens"]
    *before, last = choice["token_ids"]
    params = GuidanceParams(scorers={"probe": 1.0}, beta=beta)
    [expected] = reference.scores("probe", [*ids, *before], [last], params, len(ids))
    assert choice["search"]["value"] == pytest.approx(expected, abs=1e-3)


def test_it_is_described(server):
    data = server.http.get("/v1/scorers").json()["data"]
    [probe] = [one for one in data if one["id"] == "probe"]
    assert probe["family"] == "probe"
    assert probe["reads"] == "states"
    assert all(probe[field] for field in ("distributional", "whole", "healthy"))
    assert 0 < probe["parameters"] < 50_000
    assert probe["tokens_forwarded"] == 0
