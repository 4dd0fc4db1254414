"""Probes: their network, and guidance by one in transformers, equal to a plain reference."""

import numpy as np
import pytest
import torch
from probes_made import made
from reference import Reference
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, AutoTokenizer

from trimtab import Guidance, demo
from trimtab.config import GuidanceConfig
from trimtab.errors import InvalidGuidance, ScorerFault, ScorerLoadError
from trimtab.loading import load_scorers
from trimtab.params import GuidanceParams
from trimtab.rows import Row
from trimtab.scorers.probe import ProbeScorer
from trimtab_models import base_weights, probe
from trimtab_models.checkpoint import ScorerInfo

HISTOGRAM = {"support": (-1.0, 1.0)}
NUMBER = {"link": "sigmoid"}


@pytest.fixture(scope="module")
def base():
    return AutoModelForCausalLM.from_pretrained(demo.base(), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(demo.base(), padding_side="left")


@pytest.fixture(scope="module")
def probes(tmp_path_factory):
    place = tmp_path_factory.mktemp("probes")
    return {
        "histogram": made(place / "histogram", demo.base(), **HISTOGRAM),
        "number": made(place / "number", demo.base(), outputs=1, seed=1, **NUMBER),
    }


@pytest.fixture(scope="module")
def another(tmp_path_factory, base):
    """A base with the demo's sizes and other weights."""
    place = tmp_path_factory.mktemp("another")
    type(base)(base.config).save_pretrained(place)
    return place


def test_every_token_at_once():
    network = probe.Probe(probe.ProbeConfig(hidden_size=12, rank=3, width=5, outputs=4))
    for part in (network.level, network.factors):
        torch.nn.init.normal_(part.weight)
    states, table = torch.randn(6, 2, 12), network.table(torch.randn(9, 12))
    every = network.every(states, table)  # [6, 9, 4]
    one_by_one = torch.stack([network(states, table[v].expand(6, -1)) for v in range(9)], 1)
    torch.testing.assert_close(every, one_by_one)


def test_a_new_probe_does_not_steer():
    network = probe.Probe(probe.ProbeConfig(hidden_size=12, outputs=4))
    assert not network(torch.randn(5, 2, 12), torch.randn(5, 16)).any()


def test_rows_with_different_numbers_of_candidates():
    """All rows in one product equal one token of one row at a time, ids of the padding included."""
    network = probe.Probe(probe.ProbeConfig(hidden_size=12, rank=3, width=5, outputs=4))
    for part in (network.level, network.factors):
        torch.nn.init.normal_(part.weight)
    states, table = torch.randn(3, 2, 12), network.table(torch.randn(9, 12))
    scorer = ProbeScorer(ScorerInfo(family="probe", support=(0.0, 1.0)), network, table)
    groups = [np.array([8, 2]), np.array([5]), np.array([1, 11, 7, 0])]  # 11 is beyond the table
    outputs = scorer.histograms([0, 1, 2], groups, groups, states=states)
    pairs = [(r, min(v, 8)) for r, group in enumerate(groups) for v in group]
    expected = torch.stack([network(states[r], table[v]) for r, v in pairs])
    torch.testing.assert_close(outputs, expected)


@pytest.mark.parametrize("whole", [False, True])
def test_it_counts_its_operations(whole):
    """As PyTorch counts those of its products; a bias counts as any other parameter."""
    network = probe.Probe(probe.ProbeConfig(hidden_size=12, rank=3, width=5, outputs=4))
    info = ScorerInfo(objective="distribution", support=(0.0, 1.0))
    scorer = ProbeScorer(info, network, network.table(torch.randn(9, 12)))
    every = np.arange(9)
    groups = [every] * 3 if whole else [every[:2], every[:5], every[3:4]]
    biases = sum(len(part.bias) for part in (network.trunk[0], network.level, network.factors))
    with FlopCounterMode(display=False) as counter:
        for _ in range(2):
            scorer.histograms([0, 1, 2], [every] * 3, groups, states=torch.randn(3, 2, 12))
    assert scorer.flops == counter.get_total_flops() + 2 * (2 * 3 * biases)


@pytest.mark.parametrize("name", ["histogram", "number"])
def test_greedy_answers_equal_the_reference(name, base, tokenizer, probes):
    """Alone and in a padded batch, with the two tails."""
    reference = Reference(base, probes)
    texts = [demo.chat(text) for text in demo.prompts("test", 5)]
    inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    for tail in ("truncate", "mean"):
        fields = {"beta": 8.0, "k": 12, "mass": 1.0, "tail": tail}
        guidance = Guidance({name: str(probes[name])}, tokenizer, model=base, **fields)
        output = base.generate(
            **inputs,
            logits_processor=guidance.processors(**inputs),
            max_new_tokens=12,
            do_sample=False,
        )
        params = GuidanceParams(scorers={name: 1.0}, **fields)
        differ = 0
        for text, row in zip(texts, output[:, inputs["input_ids"].shape[1] :], strict=True):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            tokens, _ = reference.greedy(ids, params, 12, tokenizer.eos_token_id)
            assert row[: len(tokens)].tolist() == tokens
            differ += tokens != reference.greedy(ids, GuidanceParams(beta=0.0), 12)[0]
        assert differ, "the probe must steer, or it proves nothing"


def test_texts_are_scored(base, tokenizer, probes):
    guidance = Guidance({name: str(path) for name, path in probes.items()}, tokenizer, model=base)
    texts = ["The room was lovely.", "The room was dirty, and the staff was rude."]
    scores = guidance.score(texts)
    reference = Reference(base, probes)
    for i, text in enumerate(texts):
        *prefix, last = tokenizer(text)["input_ids"]
        for name in probes:
            params = GuidanceParams(scorers=dict.fromkeys(probes, 1.0))
            [expected] = reference.scores(name, prefix, [last], params, 1)
            assert scores[name][i] == pytest.approx(expected, abs=1e-4)


def test_a_budget_is_spent_by_a_histogram_or_over_the_tokens_of_an_answer(base, tokenizer, probes):
    paths = {name: str(path) for name, path in probes.items()}
    guidance = Guidance({"histogram": paths["histogram"]}, tokenizer, model=base, kl_budget=2.0)
    inputs = tokenizer(demo.chat("Write a review."), return_tensors="pt", add_special_tokens=False)
    base.generate(**inputs, logits_processor=guidance.processors(**inputs), max_new_tokens=4)
    guidance = Guidance({"number": paths["number"]}, tokenizer, model=base, kl_budget=2.0)
    with pytest.raises(InvalidGuidance, match="pass max_new_tokens to `processors`"):
        guidance.processors(**inputs)
    options = {**inputs, "max_new_tokens": 4}
    base.generate(**options, logits_processor=guidance.processors(**options))


def test_a_composite_passes_the_states_on(base, tokenizer, probes):
    paths = {name: str(path) for name, path in probes.items()}
    both = {**paths, "sum": {"path": "histogram:1+number:-2", "family": "composite"}}
    scores = Guidance(both, tokenizer, model=base).score(["The room was lovely."])
    expected = scores["histogram"][0] - 2 * scores["number"][0]
    assert scores["sum"][0] == pytest.approx(expected, abs=1e-5)


def test_without_states_it_fails_and_says_so(base, tokenizer, probes):
    guidance = Guidance({"histogram": str(probes["histogram"])}, tokenizer, model=base)
    guidance.hidden = None
    inputs = tokenizer("The room", return_tensors="pt")
    with pytest.raises(ScorerFault, match="has no states of the base for this text"):
        base.generate(**inputs, logits_processor=guidance.processors(**inputs), max_new_tokens=2)


def load(path, model):
    config = GuidanceConfig.parse({"trimtab": {"scorers": {"p": {"path": str(path)}}}})
    return load_scorers(config, max_length=64, vocab_size=1024, model=model)


def test_it_is_bound_to_its_base(probes, another, tmp_path):
    assert load(probes["number"], demo.base())["p"].reads == "states"
    with pytest.raises(ScorerLoadError, match="reads the states of another base"):
        load(probes["number"], another)
    with pytest.raises(ScorerLoadError, match="needs the base in the same engine"):
        load(probes["number"], None)
    with pytest.raises(ScorerLoadError, match="7 outputs do not fit its description"):
        load(made(tmp_path / "odd", demo.base()), demo.base())


def test_a_fingerprint_knows_the_weights_and_not_their_precision(base, another, tmp_path):
    known = base_weights.fingerprint(demo.base())
    assert base_weights.fingerprint(another) != known
    base.save_pretrained(tmp_path / "shards", max_shard_size="200KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert base_weights.fingerprint(tmp_path / "shards") == known
    half = type(base)(base.config)
    half.load_state_dict(base.state_dict())
    half.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    assert base_weights.fingerprint(tmp_path / "half") == known
    for place in (demo.base(), tmp_path / "shards"):
        embedding = base_weights.output_embedding(place)
        torch.testing.assert_close(embedding, base.get_output_embeddings().weight.detach())


@pytest.mark.parametrize("name", ["histogram", "number"])
@torch.inference_mode()
def test_the_whole_vocabulary(name, base, tokenizer, probes):
    """k = "all" is a step over every token: no tail, and the KL is exact."""
    reference = Reference(base, probes)
    fields = {"beta": 4.0, "k": "all", "trace": True}
    guidance = Guidance({name: str(probes[name])}, tokenizer, model=base, **fields)
    ids = tokenizer(demo.chat("Write a review."), add_special_tokens=False)["input_ids"]
    row, kl = Row(guidance.params, len(ids), record_key="r"), 0.0
    params = GuidanceParams(scorers={name: 1.0}, beta=4.0)
    for length in range(len(ids), len(ids) + 6):
        row.prefix = np.array(ids)
        guided = base(torch.tensor([ids])).logits[:, -1].clone()
        guidance.guide.step(guided, [(0, row)], guidance.hidden.of(1))
        logits = reference.logits(tuple(ids))[0].double()
        scores = reference.scores(name, ids, range(len(logits)), params, row.prompt_length)
        log_p = (logits + 4.0 * torch.tensor(scores).double()).log_softmax(0)
        torch.testing.assert_close(guided[0].double().log_softmax(0), log_p, rtol=1e-4, atol=1e-4)
        kl += float((log_p.exp() * (log_p - logits.log_softmax(0))).sum())
        ids.append(int(log_p.argmax()))
        step = row.steps[length].trace
        assert step["candidates"] == logits.topk(32).indices.tolist()
        shown = torch.tensor(step["guided_logprobs"]).double()
        torch.testing.assert_close(shown, log_p[step["candidates"]], rtol=1e-3, atol=1e-3)
    [record] = guidance.guide.records.report("r", ids[:-6], [ids[-6:]], True)
    assert record["kl"] == pytest.approx(kl, rel=1e-3)
    assert record["kl_tail"] == 0


@pytest.mark.parametrize("name", ["histogram", "number"])
def test_all_tokens_in_order_are_scored_as_some_tokens_are(name, base, probes):
    """At every strength; the vocabulary in its order takes a faster path."""
    scorer = load(probes[name], demo.base())["p"]
    vocab, hidden = base.get_output_embeddings().weight.shape
    states, strengths = torch.randn(5, 2, hidden), [0.0, 3.0, -2.0, 1e-9, -90.0]
    ids, order = np.arange(vocab), np.random.default_rng(0).permutation(vocab)
    keys, prefixes = list(range(5)), [np.array([1])] * 5
    fast = scorer.score(keys, prefixes, [ids] * 5, strengths, states=states).view(5, vocab)
    slow = scorer.score(keys, prefixes, [order] * 5, strengths, states=states).view(5, vocab)
    torch.testing.assert_close(fast[:, order], slow, atol=1e-5, rtol=1e-5)


def test_masked_tokens_stay_masked(base, tokenizer, probes):
    guidance = Guidance({"number": str(probes["number"])}, tokenizer, model=base, k="all", beta=9.0)
    inputs = tokenizer("The room", return_tensors="pt")
    [processor] = guidance.processors(**inputs)
    logits = base(**inputs).logits[:, -1].detach()
    logits[:, 5:] = -torch.inf
    guided = processor(inputs["input_ids"], logits)
    assert guided[0, :5].isfinite().all()
    assert (guided[0, 5:] == -torch.inf).all()
    assert not torch.allclose(guided[0, :5] - logits[0, :5], torch.zeros(5), atol=0.1)


def test_the_whole_vocabulary_needs_scorers_that_have_it(base, tokenizer, probes):
    head = str(demo.scorers()["sentiment"])
    with pytest.raises(InvalidGuidance, match="k 'all' needs scorers that score the whole"):
        Guidance({"sentiment": head}, tokenizer, k="all")
    with pytest.raises(InvalidGuidance, match="send a number as k"):
        Guidance({"p": str(probes["histogram"])}, tokenizer, model=base, k="all", kl_budget=1.0)
    with pytest.raises(InvalidGuidance, match="k"):
        Guidance({"p": str(probes["histogram"])}, tokenizer, model=base, k="some")
