"""A pool that is too small: the same scores, and no token is read more often than it must be."""

import numpy as np
import psutil
import pytest
import torch

from networks import VOCAB, configs
from test_backbone import build, reference
from test_fixed import served
from trimtab.scoring import pool as pool_module
from trimtab.scoring.pool import PrefixPool, common_prefix
from trimtab.scoring.prefix_index import BLOCK, PrefixIndex, end

TOKEN = 2 * 3 * 2 * 16 * 4
"""Bytes of a token in the pool of the small Llama."""
MAKES = {"packed": build, "fixed": lambda config, **options: served(**options)}


def make(form, slots):
    return MAKES[form](configs()["llama"], pool_bytes=(slots + 1) * TOKEN, max_length=64)


@pytest.mark.parametrize("form", MAKES)
def test_rows_that_come_and_go_equal_reforwarding(form):
    backbone, rng = make(form, 150), np.random.default_rng(1)
    texts, arrived, short = {}, 0, 0
    for _ in range(12):
        while len(texts) < 7:  # they need up to 7 · 60 tokens
            common = next(iter(texts.values()), rng.integers(VOCAB, size=20))[: rng.integers(20)]
            own = rng.integers(VOCAB, size=rng.integers(1, 40))
            texts[arrived], arrived = np.concatenate((common, own)), arrived + 1
        keys = rng.permutation([*texts])[: rng.integers(4, 8)].tolist()
        prefixes = [texts[key] for key in keys]
        candidates = [rng.permutation(VOCAB)[: rng.integers(1, 4)] for _ in keys]
        actual = backbone.hidden(keys, prefixes, candidates)
        assert (actual - reference(backbone, prefixes, candidates)).abs().max() <= 1e-5
        cached = [len(backbone.pool.entries[key].tokens) for key in keys]
        short += cached != [len(prefix) for prefix in prefixes]
        for key, own in zip(keys, candidates, strict=True):
            texts[key] = np.append(texts[key], own[0])
            if len(texts[key]) > 58 or rng.random() < 0.1:
                del texts[key]
                if rng.random() < 0.5:  # else the row stays in the pool
                    backbone.forget(key)
    assert short > 3, "the control: the pool was too small"
    for key in range(arrived):
        backbone.forget(key)
    assert backbone.pool.free_slots == 150


def read(backbone, rows, steps=8, length=30, k=4, at_once=None):
    """Tokens read in the last of several steps, in which no row ends; and the rows' own tokens."""
    rng = np.random.default_rng(2)
    texts = [rng.integers(VOCAB, size=length) for _ in range(rows)]
    for _ in range(steps):
        before = backbone.tokens_forwarded
        for first in range(0, rows, at_once or rows):
            turn = range(rows)[first : first + (at_once or rows)]
            candidates = [rng.permutation(VOCAB)[:k] for _ in turn]
            backbone.hidden(turn, [texts[row] for row in turn], candidates)
            for row, own in zip(turn, candidates, strict=True):
                texts[row] = np.append(texts[row], own[0])
    return backbone.tokens_forwarded - before, sum(map(len, texts)) - rows


@pytest.mark.parametrize("at_once", [12, 1])
@pytest.mark.parametrize("form", MAKES)
@pytest.mark.parametrize("slots", [400, 300, 220])
def test_only_what_has_no_room_is_read_again(form, slots, at_once):
    """All rows in one step, or one row after the other, as from requests in turn."""
    rows, k = 12, 4
    tokens, whole = read(make(form, slots), rows, k=k, at_once=at_once)
    assert whole == 12 * 37
    assert tokens <= rows * (1 + k) + whole - slots + whole // rows  # a row must be there whole
    assert tokens >= rows * (k - 1) + whole - slots, "the control: less is not possible"


def test_the_oldest_first_would_read_everything_again(monkeypatch):
    """The control of the test above: the order that most caches have."""
    latest = PrefixPool._latest
    monkeypatch.setattr(PrefixPool, "_latest", lambda *a: latest(*a)[::-1])
    tokens, whole = read(make("fixed", 400), 12, at_once=1)
    assert tokens > 0.9 * whole


@pytest.mark.parametrize("form", MAKES)
def test_rows_that_have_ended_make_room(form):
    backbone, rng = make(form, 200), np.random.default_rng(3)
    texts = {key: rng.integers(VOCAB, size=30) for key in range(12)}

    def step(keys):
        before = backbone.tokens_forwarded
        backbone.hidden(keys, [texts[key] for key in keys], [np.arange(2)] * len(keys))
        for key in keys:
            texts[key] = np.append(texts[key], 0)
        return backbone.tokens_forwarded - before

    for _ in range(8):
        crowded = step(range(12))
    spare = [step(range(8, 12)) for _ in range(pool_module.PATIENCE + 2)]
    assert crowded >= 12 * 2 + 12 * 37 - 200
    assert spare[-1] <= 4 * (1 + 2), "the four that are left are cached whole"


@pytest.mark.parametrize("form", MAKES)
def test_rows_of_one_step_do_not_stay(form):
    """Texts that are scored once, such as those of a search, leave room for rows that go on."""
    backbone, rng = make(form, 200), np.random.default_rng(5)
    texts = [rng.integers(VOCAB, size=30) for _ in range(3)]
    for key in range(100, 130):  # they fill the pool
        backbone.hidden([key], [rng.integers(VOCAB, size=20)], [np.arange(2)])
    for key in range(200, 212):
        before = backbone.tokens_forwarded
        once = rng.integers(VOCAB, size=20)
        backbone.hidden([0, 1, 2, key], [*texts, once], [np.arange(2)] * 4)
        texts = [np.append(text, 0) for text in texts]
    assert backbone.tokens_forwarded - before <= 4 * (1 + 2) + 20 + 3


def test_candidates_give_way_before_prefixes():
    """A prefix's token costs a token to read again, and all of a row's candidates cost one too."""
    backbone = make("packed", 12 * 39)
    tokens, whole = read(backbone, 12, k=4)
    assert tokens <= 12 * (1 + 4), "no prefix is read again, though there is no room for candidates"
    assert backbone.pool.size - 1 - backbone.pool.free_slots >= whole


def scan(prefixes, tokens):
    """The longest common start with any prefix."""
    return max((common_prefix(other, tokens) for other in prefixes.values()), default=0)


def test_the_index_is_as_good_as_a_scan_up_to_a_mark():
    rng = np.random.default_rng(4)
    index, prefixes, exact, trials = PrefixIndex(), {}, 0, 600
    for _ in range(trials):
        key, source = int(rng.integers(40)), [*prefixes.values()]
        roll, length = rng.random(), int(rng.integers(1, 4 * BLOCK))
        if key in prefixes and roll < 0.2:
            index.cut(key, 0)
            del prefixes[key]
        elif key in prefixes and roll < 0.5:
            prefixes[key] = prefixes[key][: rng.integers(1, len(prefixes[key]) + 1)]
            index.cut(key, len(prefixes[key]))
        elif key in prefixes:
            prefixes[key] = np.append(prefixes[key], rng.integers(3, size=length))
            index.put(key, prefixes[key])
        else:
            common = source[int(rng.integers(len(source)))] if source and roll < 0.8 else []
            common = common[: rng.integers(len(common) + 1)]
            tokens = np.append(common, rng.integers(3, size=length)).astype(np.int64)
            best, nearest = scan(prefixes, tokens), index.nearest(tokens)
            actual = 0 if nearest is None else common_prefix(prefixes[nearest], tokens)
            ends = [end(i) for i in range(9)]
            assert max((e for e in ends if e <= best), default=0) <= actual <= best
            exact += actual == best
            prefixes[key] = tokens
            index.put(key, tokens)
    assert exact > 50
    for key in prefixes:
        index.cut(key, 0)
    assert not index._keys
    assert not index._marks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pool_takes_memory_when_it_is_written(dtype):
    process = psutil.Process()
    before = process.memory_info().rss
    pool = PrefixPool(layers=2, kv_heads=2, head_dim=32, max_bytes=2**29, dtype=dtype)
    assert process.memory_info().rss - before < 2**25
    assert pool.k.dtype == pool.v.dtype == dtype
    assert not pool.k[:, :5].any()
    slots = torch.arange(1, pool.size // 2)
    pool.write(1, slots, *[torch.ones(len(slots), 2, 32, dtype=dtype)] * 2)
    assert process.memory_info().rss - before > 2**26
    assert bool(pool.v[1, slots].all())
    assert not pool.v[0, slots[:9]].any()
