"""Prefix pools have room for all requests if memory allows, and say what is missing."""

import re

import pytest
import torch

from networks import configs
from trimtab import pool_size
from trimtab.config import CACHE_BYTES, GuidanceConfig
from trimtab.loading import load_scorers
from trimtab_models.checkpoint import ScorerInfo, save
from trimtab_models.networks import scalar_head

GIB = 2**30
TOKENS = {"llama": 2 * 3 * 2 * 16 * 4, "gpt2": 2 * 3 * 4 * 16 * 4}
"""Bytes of a token's K/V in single precision: layers · K/V heads · dimensions of a head."""


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    root = tmp_path_factory.mktemp("scorers")
    return {
        name: str(save(scalar_head(configs()[name]), None, ScorerInfo(), root / name))
        for name in TOKENS
    }


def scorers(paths, *names, cache_bytes=None):
    specs = {f"s{i}": {"path": paths[name]} for i, name in enumerate(names)}
    specs["mix"] = {"path": "s0:1", "family": "composite"}  # it has no pool
    return GuidanceConfig(scorers=specs, cache_bytes=cache_bytes)


def fit(config, room=64 * GIB, rows=256, length=4096):
    return pool_size.fit(config, rows=rows, length=length, room=room, dtype=torch.float32)


def test_all_requests_have_room_if_memory_allows(paths):
    rows = 256 * 4096
    assert fit(scorers(paths, "llama")) == (rows * TOKENS["llama"], None)
    # Pools are equally large: the one with the largest tokens decides.
    assert fit(scorers(paths, "llama", "gpt2")) == (2 * rows * TOKENS["gpt2"], None)
    assert fit(scorers(paths, "llama"), rows=1, length=64) == (CACHE_BYTES, None)
    assert fit(GuidanceConfig()) == (CACHE_BYTES, None)


def test_what_is_missing_is_one_line(paths):
    size, line = fit(scorers(paths, "llama"), room=2 * GIB)
    assert size == GIB // 2
    held = size // TOKENS["llama"]
    assert "have 512 MiB; 256 requests of 4096 tokens need 768 MiB" in line
    assert f"{held} tokens" in line
    assert "--cache-bytes" in line
    size, line = fit(scorers(paths, "llama"), room=-GIB)
    assert size == CACHE_BYTES
    assert "have 256 MiB" in line


def test_what_the_user_has_chosen_stays(paths):
    size, line = fit(scorers(paths, "llama", cache_bytes=2**20))
    assert size == 2**20
    assert re.search(r"have 1 MiB.*need 768 MiB", line)
    assert fit(scorers(paths, "llama", cache_bytes=GIB)) == (GIB, None)


def test_pools_hold_what_was_promised(paths):
    config = scorers(paths, "llama", "gpt2", cache_bytes=2**21)
    _, line = fit(config)
    loaded = load_scorers(config, max_length=100, vocab_size=97)
    sizes = [loaded[name].backbone.pool.size for name in ("s0", "s1")]
    assert min(sizes) == int(re.search(r"may have (\d+) tokens", line)[1])
