"""Prefix-shared scoring equals plain re-forwarding, for every family and every history."""

import numpy as np
import pytest
import torch
from transformers import BloomConfig, Gemma2Config, LlamaConfig

from networks import LENGTH, VOCAB, configs
from trimtab.errors import ScorerLoadError
from trimtab.scoring import waves
from trimtab.scoring.attention import NAME
from trimtab.scoring.backbone import Backbone
from trimtab.scoring.captured import FixedSteps
from trimtab_models.networks import scalar_head, vocabulary_head


def build(config, *, vocabulary=False, **options):
    torch.manual_seed(0)
    make = vocabulary_head if vocabulary else scalar_head
    model = make(config)
    for parameter in model.parameters():  # default initialisation is too tame to tell rows apart
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    options = {"max_length": LENGTH, "pool_bytes": 2**20, "max_candidates": 32} | options
    return Backbone(model, **options)


def reference(backbone, prefixes, candidates):
    """Re-forward every prefix + candidate through transformers' own attention."""
    network = backbone.network
    network.set_attn_implementation("eager")
    with torch.inference_mode():
        out = [
            network(torch.from_numpy(np.append(p, c))[None], use_cache=False).last_hidden_state[
                :, -1
            ]
            for p, group in zip(prefixes, candidates, strict=True)
            for c in (group if candidates is not None else [])
        ]
    network.set_attn_implementation(NAME)
    return torch.cat(out)


def ragged(rng, rows, longest=LENGTH - 2):
    prefixes = [rng.integers(VOCAB, size=rng.integers(1, longest)) for _ in range(rows)]
    return prefixes, [rng.permutation(VOCAB)[: rng.integers(1, 30)] for _ in range(rows)]


def history(rng, steps, longest):
    """Keys, prefixes and candidates of steps in which 8 rows shrink, fork and grow.

    longest: most tokens that a row grows by in a step.
    """
    texts = {key: rng.integers(VOCAB, size=8) for key in range(8)}
    for _ in range(steps):
        for key in range(8):
            roll = rng.random()
            if roll < 0.2:
                texts[key] = texts[key][: rng.integers(1, len(texts[key]) + 1)]
            elif roll < 0.3:
                texts[key] = texts[int(rng.integers(8))].copy()
            elif roll < 0.9:
                texts[key] = np.append(
                    texts[key], rng.integers(VOCAB, size=rng.integers(1, longest + 1))
                )
            texts[key] = texts[key][-100:]
        keys = rng.permutation(8)[: rng.integers(1, 9)].tolist()
        prefixes = [texts[key] for key in keys]
        candidates = [rng.permutation(VOCAB)[: rng.integers(1, 20)] for _ in keys]
        yield keys, prefixes, candidates


@pytest.mark.parametrize("family", configs())
def test_ragged_batches_equal_reforwarding(family):
    backbone, rng = build(configs()[family]), np.random.default_rng(1)
    prefixes, candidates = ragged(rng, 6, longest=60)
    for step in range(5):
        actual = backbone.head(backbone.hidden(range(6), prefixes, candidates))
        expected = backbone.head(reference(backbone, prefixes, candidates))
        assert (actual - expected).abs().max() <= 1e-5, step
        # Some rows take one of the candidates, others a token that nobody scored.
        chosen = [c[0] if i % 3 else (c[0] + 1) % VOCAB for i, c in enumerate(candidates)]
        prefixes = [np.append(p, c) for p, c in zip(prefixes, chosen, strict=True)]
        candidates = [rng.permutation(VOCAB)[: rng.integers(1, 30)] for _ in range(6)]


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_last_hidden_state_of_prefixes(family):
    backbone, rng = build(configs()[family], vocabulary=True), np.random.default_rng(2)
    prefixes, _ = ragged(rng, 5)
    prefixes.append(prefixes[0].copy())
    for _ in range(3):
        actual = backbone.hidden(range(6), prefixes, None)
        expected = reference(backbone, [p[:-1] for p in prefixes], [p[-1:] for p in prefixes])
        assert (actual - expected).abs().max() <= 1e-5
        prefixes = [np.append(p, rng.integers(VOCAB)) for p in prefixes]


@pytest.mark.slow
def test_any_history_gives_the_same_scores():
    """Rows that shrink, fork, vanish, swap keys and come back: the cache is never the truth."""
    rng = np.random.default_rng(3)
    # 200 slots: rows must be evicted and split into waves all the time.
    backbone = build(configs()["llama"], pool_bytes=200 * 3 * 2 * 2 * 16 * 4)
    for keys, prefixes, candidates in history(rng, steps=60, longest=4):
        actual = backbone.hidden(keys, prefixes, candidates)
        assert (actual - reference(backbone, prefixes, candidates)).abs().max() <= 1e-5


def test_no_attention_is_planned_for_each_new_shape():
    """cuDNN's would be: on a GPU each step would wait for it."""
    served, allowed = build(configs()["llama"]), torch.backends.cuda.cudnn_sdp_enabled
    seen, before = [], allowed()
    served.network.register_forward_pre_hook(lambda *_: seen.append(allowed()))
    served.hidden([0], [np.arange(5)], [np.arange(3)])
    assert seen == [False]
    assert [before, allowed()] == [True, True], "the control: elsewhere it stays as it was"


def test_a_stale_cache_would_be_seen(monkeypatch):
    """The control: without reconciliation the comparison above must fail."""
    backbone, rng = build(configs()["llama"]), np.random.default_rng(4)
    first, second = rng.integers(VOCAB, size=(2, 20))
    candidates = [np.arange(5)]
    backbone.hidden([0], [first], candidates)
    monkeypatch.setattr("trimtab.scoring.pool.common_prefix", lambda a, b: min(len(a), len(b)))
    actual = backbone.hidden([0], [second], candidates)
    assert (actual - reference(backbone, [second], candidates)).abs().max() > 1e-2


def test_common_prompts_are_computed_once():
    backbone, rng = build(configs()["llama"]), np.random.default_rng(5)
    prompt = rng.integers(VOCAB, size=50)
    candidates = [np.arange(4)] * 8
    backbone.hidden(range(8), [prompt] * 8, candidates)
    assert backbone.tokens_forwarded == 50 + 8 * 4
    assert backbone.pool.size - 1 - backbone.pool.free_slots == 50 + 8 * 4
    # The chosen candidate's K/V are kept: the next step forwards candidates alone.
    prefixes = [np.append(prompt, i % 4) for i in range(8)]
    backbone.hidden(range(8), prefixes, candidates)
    assert backbone.tokens_forwarded == 50 + 2 * 8 * 4
    for key in range(8):
        backbone.forget(key)
    assert backbone.pool.free_slots == backbone.pool.size - 1


def test_long_prompts_come_in_chunks(monkeypatch):
    monkeypatch.setattr(waves, "MAX_TOKENS", 16)
    backbone, rng = build(configs()["llama"]), np.random.default_rng(6)
    prefixes, candidates = ragged(rng, 4)
    actual = backbone.hidden(range(4), prefixes, candidates)
    assert (actual - reference(backbone, prefixes, candidates)).abs().max() <= 1e-5


@pytest.mark.parametrize("fixed", [False, True])
def test_many_candidates_are_read_in_parts(fixed, monkeypatch):
    backbone, rng = build(configs()["llama"], max_candidates=8), np.random.default_rng(8)
    if fixed:
        backbone.fixed = FixedSteps(backbone.network, backbone.pool, graphs=False)
    widest, held = [], type(backbone)._hidden

    def noting(self, keys, prefixes, candidates):
        widest.append(max(map(len, candidates)))
        return held(self, keys, prefixes, candidates)

    monkeypatch.setattr(type(backbone), "_hidden", noting)
    prefixes = [rng.integers(VOCAB, size=n) for n in (5, 20, 9)]
    candidates = [rng.permutation(VOCAB)[:n] for n in (30, 3, 8)]
    for _ in range(2):
        actual = backbone.hidden(range(3), prefixes, candidates)
        assert (actual - reference(backbone, prefixes, candidates)).abs().max() <= 1e-5
        assert widest == [6, 8, 8, 8], "the first ones come last, so that their K/V are kept"
        widest.clear()
        before = backbone.tokens_forwarded
        prefixes = [np.append(p, group[0]) for p, group in zip(prefixes, candidates, strict=True)]
    backbone.hidden(range(3), prefixes, candidates)
    if not fixed:  # every chosen candidate was kept
        assert backbone.tokens_forwarded - before == 30 + 3 + 8


def test_a_failed_forward_leaves_nothing_behind(monkeypatch):
    backbone, rng = build(configs()["llama"]), np.random.default_rng(7)
    prefixes, candidates = ragged(rng, 3)
    with monkeypatch.context() as broken:
        broken.setattr(backbone.network, "forward", lambda **_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            backbone.hidden(range(3), prefixes, candidates)
    assert backbone.pool.free_slots == backbone.pool.size - 1
    actual = backbone.hidden(range(3), prefixes, candidates)
    assert (actual - reference(backbone, prefixes, candidates)).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (BloomConfig(vocab_size=VOCAB, hidden_size=64, n_layer=1, n_head=4), "cannot be served"),
        (
            Gemma2Config(
                vocab_size=VOCAB,
                hidden_size=64,
                intermediate_size=64,
                num_hidden_layers=1,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=16,
            ),
            "soft-capped",
        ),
        (
            LlamaConfig(
                vocab_size=VOCAB,
                hidden_size=64,
                intermediate_size=64,
                num_hidden_layers=1,
                num_attention_heads=4,
                rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
            ),
            "length",
        ),
    ],
)
def test_what_cannot_be_exact_is_refused(config, reason):
    with pytest.raises(ScorerLoadError, match=reason):
        build(config)


def test_learned_positions_past_their_end_are_refused():
    with pytest.raises(ScorerLoadError, match="learned positions"):
        build(configs()["gpt2"], max_length=LENGTH + 1)


def test_a_pool_too_small_for_one_row_is_refused():
    with pytest.raises(ScorerLoadError, match="cache_bytes"):
        build(configs()["llama"], pool_bytes=4096)
