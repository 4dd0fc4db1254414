"""Rows that share the start of their prefixes: read once, with the same scores."""

import numpy as np
import pytest
import torch

from networks import VOCAB, configs
from test_backbone import build, reference
from trimtab.scoring import shared
from trimtab.scoring.pool import PrefixPool
from trimtab.scoring.shared import Block, shared_runs


@pytest.fixture
def short(monkeypatch):
    """Runs are worth their call in short texts too."""
    monkeypatch.setattr(shared, "DEPTHS", (32, 8, 2))
    monkeypatch.setattr(shared, "SAVED", 4)


def texts(rng, starts):
    """Prompts of several rows, with the common starts given as lengths for several rows each."""
    prompts = [rng.integers(VOCAB, size=n) for n in starts]
    return [
        np.append(prompt, rng.integers(VOCAB, size=rng.integers(1, 9)))
        for prompt in prompts
        for _ in range(3)
    ]


@pytest.mark.parametrize("family", ["llama", "qwen2-sliding", "mistral-sliding", "gpt2"])
def test_shared_starts_equal_reforwarding(family, short):
    backbone, rng = build(configs()[family]), np.random.default_rng(1)
    prefixes = texts(rng, (40, 9, 1))
    prefixes.append(rng.integers(VOCAB, size=30))
    rows, counts = range(len(prefixes)), []
    for step in range(5):
        candidates = [rng.permutation(VOCAB)[: rng.integers(1, 30)] for _ in rows]
        actual = backbone.head(backbone.hidden(rows, prefixes, candidates))
        expected = backbone.head(reference(backbone, prefixes, candidates))
        assert (actual - expected).abs().max() <= 1e-5, step
        # Some rows take a token that nobody scored, which must be read: its query is in a run too.
        chosen = [c[0] if i % 3 else (c[0] + 1) % VOCAB for i, c in enumerate(candidates)]
        prefixes = [np.append(p, c) for p, c in zip(prefixes, chosen, strict=True)]
        entries = [backbone.pool.entries[row] for row in rows]
        blocks = [Block(e.slots, len(e.slots), len(e.slots), 1) for e in entries]
        counts.append(len(shared_runs(blocks)))
    assert min(counts) >= 2, "the control: there are runs"


def test_the_keys_of_a_common_prompt_are_read_once(short, monkeypatch):
    backbone, rng = build(configs()["llama"]), np.random.default_rng(2)
    prompt, seen, gather = rng.integers(VOCAB, size=100), [], backbone.pool.gather
    candidates = [np.arange(4)] * 8
    backbone.hidden(range(8), [prompt] * 8, candidates)

    def counted(layer, slots, temporary=False):
        seen.append(len(slots))
        return gather(layer, slots, temporary)

    monkeypatch.setattr(backbone.pool, "gather", counted)
    prefixes = [np.append(prompt, i % 4) for i in range(8)]
    backbone.hidden(range(8), prefixes, candidates)
    assert sum(seen) == 3 * (100 + 8 * (1 + 4))


def test_a_run_is_what_its_rows_share(short):
    rng = np.random.default_rng(3)
    total = 0
    for _ in range(200):
        trunk = [rng.permutation(500)[:60] + 500 * i for i in range(2)]
        blocks = []
        for _ in range(int(rng.integers(1, 7))):
            common = trunk[int(rng.integers(2))][: rng.integers(0, 60)]
            own = 1000 + rng.integers(10_000, size=rng.integers(1, 20))
            slots = np.concatenate((common, own))
            start = int(rng.integers(len(slots)))
            blocks.append(Block(slots, len(slots), start, len(slots) - start))
        runs = shared_runs(blocks)
        members = [i for run in runs for i in run.members]
        assert len(members) == len(set(members))
        for run in runs:
            starts = {tuple(blocks[i].slots[: run.length]) for i in run.members}
            assert len(starts) == 1
            assert 0 < run.length <= min(blocks[i].start for i in run.members)
            assert (len(run.members) - 1) * run.length >= shared.SAVED
        total += len(runs)
    assert total > 100


def test_kept_memory_holds_the_latest_gather():
    pool = PrefixPool(layers=2, kv_heads=2, head_dim=4, max_bytes=2**14)
    pool.k.normal_()
    pool.v.normal_()
    for layer, n in ((0, 5), (1, 30), (0, 7)):
        slots = torch.randint(pool.size, (n,))
        k, v = pool.gather(layer, slots)
        assert torch.equal(k, pool.k[layer][slots])
        assert torch.equal(v, pool.v[layer][slots])
