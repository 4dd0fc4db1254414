"""Scorers with equal backbones share one, which runs once a step, for the scores of each alone."""

import gc
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from networks import VOCAB, configs
from test_backbone import build
from trimtab.config import GuidanceConfig
from trimtab.guide import Guide
from trimtab.loading import load_scorers
from trimtab.params import GuidanceParams
from trimtab.rows import Row
from trimtab.scorers import (
    CompositeScorer,
    DistributionScorer,
    HeadScorer,
    LogRatioScorer,
    VocabularyScorer,
)
from trimtab.scorers.base import Scorer
from trimtab.scoring.backbones import Backbones, same
from trimtab.scoring.deadline import OutOfTime
from trimtab_models.checkpoint import ScorerInfo, save
from trimtab_models.networks import scalar_head, split, vocabulary_head

LENGTH = 100
OPTIONS = {"max_length": LENGTH, "pool_bytes": 2**21, "max_candidates": 32}
SHARED = {"one": 0, "two": 0, "wide": 0, "other": 1, "words": 2, "likely": 2, "mix": 0}
"""Which backbone each of the scorers has: heads that read candidates, another network, heads that
read prefixes alone."""


def network(kind="llama", seed=0, *, bins=1, vocabulary=False, head=None, **settings):
    """A model; `seed` of its backbone, `head` of its head."""
    config = configs()[kind]
    config.update(settings)
    config.tie_word_embeddings = False
    model = vocabulary_head(config) if vocabulary else scalar_head(config, bins=bins)
    trunk, top = split(model)
    for part, number in ((trunk, seed), (top, seed if head is None else head)):
        torch.manual_seed(number)
        for parameter in part.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.15)
    return model


def models(kind="llama"):
    """Scorers' networks, and what is said of them."""
    spread = {"support": (-1.0, 2.0), "mean": 0.3}
    return {
        "one": (network(kind, head=1), ScorerInfo()),
        "two": (network(kind, head=2), ScorerInfo(link="sigmoid")),
        "wide": (network(kind, head=3, bins=5), ScorerInfo(family="distribution", **spread)),
        "other": (network(kind, seed=1, head=1), ScorerInfo()),
        "words": (network(kind, head=4, vocabulary=True), ScorerInfo(family="vocabulary")),
        "likely": (network(kind, head=5, vocabulary=True), ScorerInfo(family="log_ratio")),
    }


def scorer(model, info, backbones):
    """The scorer of a network in double precision, so that sums in another order are as good."""
    alone = info.family in ("vocabulary", "log_ratio")
    made = {"head": HeadScorer, "distribution": DistributionScorer}.get(
        info.family, VocabularyScorer
    )(info, backbones.of(model.double(), alone=alone, **OPTIONS))
    return LogRatioScorer(made) if info.family == "log_ratio" else made


def load(kind="llama", *names, together=True):
    """Scorers, and a composite of two of them; with backbones of their own if not together."""
    backbones = Backbones()
    loaded = {
        name: scorer(model, info, backbones if together else Backbones())
        for name, (model, info) in models(kind).items()
        if name in names or not names
    }
    if not names:
        parts = {"one": (loaded["one"], 0.5), "wide": (loaded["wide"], -1.0)}
        loaded["mix"] = CompositeScorer(parts)
    return loaded


@contextmanager
def forwards(scorers):
    """How often each network runs."""
    counts, hooks = {}, []
    for backbone in {b.network: b for s in scorers.values() for b in s.backbones}.values():

        def count(module, *_):
            counts[module] = counts.get(module, 0) + 1

        hooks.append(backbone.network.register_forward_pre_hook(count))
    yield counts
    for hook in hooks:
        hook.remove()


def steps(guide, kinds, rng, count=4, per_step=None):
    """Logits and traces of some steps of rows with these guidance fields."""
    rows = [
        Row(
            GuidanceParams.parse({"trace": True, **fields}),
            3 + r,
            prefix=rng.integers(VOCAB, size=3 + r),
            record_key=str(r),
            max_tokens=20,
        )
        for r, fields in enumerate(kinds)
    ]
    out = []
    for _ in range(count):
        logits = torch.from_numpy(rng.normal(scale=2, size=(len(rows), VOCAB))).float()
        with forwards(guide.registry.scorers) as counts, torch.inference_mode():
            guide.step(logits, list(enumerate(rows)))
        if per_step is not None:
            per_step.append(sorted(counts.values()))
        out.append(logits)
        for row in rows:
            row.prefix = np.append(row.prefix, int(out[-1][rows.index(row)].argmax()))
    return torch.stack(out), rows


MIXED = [
    {"scorers": {"one": 1.0, "two": -0.5, "wide": 0.7, "words": 0.3, "likely": 0.2}, "beta": 2.0},
    {"scorers": {"one": 1.0}, "beta": 3.0, "tail": "mean"},
    {"scorers": {"two": 1.0, "likely": 1.0}, "beta": 1.0},
    {"scorers": {"mix": 1.0, "other": 0.2}, "beta": -2.0, "normalize": True},
    {"scorers": {"wide": 1.0, "two": 0.1}, "kl_budget": 2.0},
    {"scorers": {"wide": 1.0, "one": 1.0}, "beta": 1.0, "floors": {"wide": 0.5}},
]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2-sliding"])
def test_one_forward_a_step_and_the_scores_of_each_alone(kind):
    seed = np.random.SeedSequence().entropy
    shared, per_step = Guide(load(kind)), []
    logits, rows = steps(shared, MIXED, np.random.default_rng(seed), per_step=per_step)
    # One network for heads that read candidates, one for those that read prefixes, and the other.
    assert per_step == [[1, 1, 1]] * 4
    counts = []
    alone = Guide(load(kind, together=False))
    alone._announce = lambda rows, groups: None  # each call forwards its own rows
    expected, own = steps(alone, MIXED, np.random.default_rng(seed), per_step=counts)
    assert sum(counts[0]) > 6
    torch.testing.assert_close(logits, expected, rtol=1e-6, atol=1e-6)
    for row, other in zip(rows, own, strict=True):
        assert row.fault is None
        assert row.steps.keys() == other.steps.keys()
        for at, step in row.steps.items():
            for name, values in step.trace["scores"].items():
                assert values == pytest.approx(other.steps[at].trace["scores"][name], abs=1e-6)


def test_which_scorers_share(tmp_path):
    """As they are loaded from their files."""
    specs = {
        name: {"path": str(save(model, None, info, tmp_path / name))}
        for name, (model, info) in models().items()
    }
    specs["mix"] = {"path": "one:0.5+wide:-1", "family": "composite"}
    config = GuidanceConfig.parse({"trimtab": {"scorers": specs}})
    loaded = load_scorers(config, max_length=LENGTH, vocab_size=VOCAB)
    pools = {name: {b.pool for b in loaded[name].backbones} for name in SHARED}
    for name, group in SHARED.items():
        for other, theirs in SHARED.items():
            assert (pools[name] == pools[other]) == (group == theirs), (name, other)
    own = load(together=False)
    assert len({b.pool for s in own.values() for b in s.backbones}) == len(models())


def test_networks_that_differ_are_not_equal():
    one, other = split(network())[0], split(network())[0]
    assert same(one, split(network(head=3, bins=4))[0])
    assert same(one, split(network(vocabulary=True))[0])
    rope = {"rope_theta": 5e3, "rope_type": "default"}
    assert not same(one, split(network(rope_parameters=rope))[0])
    assert not same(one, split(network("mistral"))[0])
    assert not same(one, split(network().double())[0])
    for name, parameter in other.named_parameters():
        assert same(one, other)
        last = parameter.data.view(-1)[-1:]
        kept = last.clone()
        last += 1e-6
        assert not same(one, other), name
        last.copy_(kept)


def test_a_scorer_that_leaves_takes_nothing_from_the_others():
    made, backbones = models(), Backbones()
    rng = np.random.default_rng(0)
    prefixes = [rng.integers(VOCAB, size=n) for n in (5, 9)]
    rows = prefixes, [rng.permutation(VOCAB)[:6] for _ in prefixes], [1.0, 1.0]
    first = scorer(*made["one"], backbones)
    pool = first.backbone.pool
    first.score([0, 1], *rows)
    second = scorer(*made["two"], backbones)  # while rows are in progress: it does not read again
    assert second.backbone.pool is pool
    scores = second.score([0, 1], *rows)
    assert second.tokens_forwarded == 2 * 6
    assert first.tokens_forwarded == 5 + 9 + 2 * 6
    del first, made["one"]
    gc.collect()
    third = scorer(*made["wide"], backbones)
    assert third.backbone.pool is pool
    alone = load("llama", "two", together=False)["two"].score([5, 6], *rows)
    for values in (scores, second.score([0, 1], *rows)):
        torch.testing.assert_close(values, alone, rtol=1e-6, atol=1e-6)
    del second, third, made
    gc.collect()
    assert scorer(*models()["one"], backbones).backbone.pool is not pool, "nobody used it any more"


def test_versions_of_a_name_share_too():
    loaded, alone = load("llama", "one", "two"), load("llama", "one", "two", together=False)
    guide, rng = Guide({"s": loaded["one"]}), np.random.default_rng(3)
    params = GuidanceParams.parse({"scorers": {"s": 1.0}, "beta": 2.0, "mass": 1.0, "k": 5})
    rows = [
        Row(params, 4, prefix=rng.integers(VOCAB, size=6), scorers={"s": one})
        for one in loaded.values()
    ]
    before = torch.from_numpy(rng.normal(size=(2, VOCAB))).float()
    logits = before.clone()
    guide.step(logits, list(enumerate(rows)))
    for r, one in enumerate(alone.values()):
        expected = before[r : r + 1].clone()
        Guide({"s": one}).step(expected, [(0, Row(params, 4, prefix=rows[r].prefix))])
        torch.testing.assert_close(logits[r : r + 1], expected, rtol=1e-6, atol=1e-6)


class Fails(HeadScorer):
    """A head that fails for prefixes of some length; its backbone does too, if `deep`."""

    def score(self, keys, prefixes, candidates, strengths, prompts=()):
        if any(len(prefix) == 4 for prefix in prefixes):
            raise RuntimeError("secret")
        return super().score(keys, prefixes, candidates, strengths, prompts)


@pytest.mark.parametrize("deep", [False, True])
def test_a_fault_stays_with_its_scorer_and_row(deep, monkeypatch):
    """Also if one row's forward fails, which another scorer has announced."""
    trunk = build(configs()["llama"])
    good, bad = HeadScorer(ScorerInfo(), trunk), Fails(ScorerInfo(), trunk)
    plain = trunk._forward

    def forward(keys, prefixes, candidates):
        if any(len(prefix) == 4 for prefix in prefixes):
            raise RuntimeError("secret")
        return plain(keys, prefixes, candidates)

    if deep:
        monkeypatch.setattr(trunk, "_forward", forward)
    kinds = [{"scorers": {"good": 1.0}}, {"scorers": {"bad": 1.0}}, {"scorers": {"bad": 1.0}}]
    _, rows = steps(Guide({"good": good, "bad": bad}), kinds, np.random.default_rng(0), count=1)
    assert [row.fault and row.fault.scorer for row in rows] == [None, "bad", None]


def test_who_runs_out_of_time_is_the_one_that_asked(monkeypatch):
    trunk = build(configs()["llama"])
    scorers = {name: HeadScorer(ScorerInfo(), trunk) for name in ("a", "b")}
    plain, sizes = trunk._forward, []

    def slow(keys, prefixes, candidates):
        sizes.append(len(keys))
        if len(sizes) == 1:
            raise OutOfTime("the time is over")
        return plain(keys, prefixes, candidates)

    monkeypatch.setattr(trunk, "_forward", slow)
    kinds = [{"scorers": {"a": 1.0}}, {"scorers": {"b": 1.0}}]
    _, rows = steps(Guide(scorers), kinds, np.random.default_rng(0), count=1)
    assert [row.fault and row.fault.overrun for row in rows] == [True, None]
    assert sizes == [2, 1], "the second scorer reads its own row only"


class Slow(Scorer):
    """A part that never ends by itself."""

    family = "slow"

    def score(self, keys, prefixes, candidates, strengths, prompts=()):
        while True:
            sum(range(10))


def test_a_pool_that_an_abandoned_call_may_hold_is_not_touched():
    """The composite's call was abandoned: until it ends, no head on its backbone is called."""
    trunk = build(configs()["llama"])
    part, other = (HeadScorer(ScorerInfo(), trunk) for _ in range(2))
    mix = CompositeScorer({"part": (part, 1.0), "slow": (Slow(ScorerInfo()), 1.0)})
    guide = Guide(
        {"mix": mix, "other": other, "apart": HeadScorer(ScorerInfo(), build(configs()["llama"]))},
        0.25,  # the other calls must end within it on a busy machine
    )
    kinds = [{"scorers": {"mix": 1.0}, "beta": 1.0}]
    _, rows = steps(guide, kinds, np.random.default_rng(0), count=1)
    assert rows[0].fault.overrun
    status = guide.registry.calls.status(trunk.pool)
    assert status.left is not None
    thread, status.left = status.left, type("Alive", (), {"is_alive": lambda _: True, "ident": 0})()
    _, rows = steps(
        guide,
        [{"scorers": {"other": 1.0}}, {"scorers": {"apart": 1.0}}],
        np.random.default_rng(1),
        1,
    )
    assert "still busy" in rows[0].fault.message
    assert rows[1].fault is None
    status.left = thread
    thread.join(5)
    trunk.pool.begin([], [])
    _, rows = steps(guide, [{"scorers": {"other": 1.0}}], np.random.default_rng(2), 1)
    assert rows[0].fault is None
    assert status.left is None, "its pool was emptied before it was used again"
