"""The K/V cache on a CPU fits into the memory that is free."""

import random
import warnings
from types import SimpleNamespace

import psutil
import pytest
import torch
from transformers import LlamaConfig

from trimtab import memory
from trimtab.errors import StartError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # vLLM's import warns of its own code
    from trimtab.adapters.vllm import kv_cache

GIB = 2**30


def engine(max_model_len=2048, max_num_seqs=16, **cache):
    """vLLM's configuration of a small Llama with 2 layers of 2 K/V heads of 16 dimensions."""
    network = LlamaConfig(
        vocab_size=100, hidden_size=64, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, tie_word_embeddings=True,
    )  # fmt: skip
    model = SimpleNamespace(
        max_model_len=max_model_len,
        dtype=torch.bfloat16,
        hf_text_config=network,
        get_num_kv_heads=lambda parallel: 2,
        get_head_size=lambda: 16,
        get_num_layers=lambda parallel: 2,
    )
    defaults = {"kv_cache_memory_bytes": None, "cache_dtype": "auto"}
    defaults["gpu_memory_utilization"] = kv_cache.CacheConfig().gpu_memory_utilization
    return SimpleNamespace(
        model_config=model,
        cache_config=SimpleNamespace(**{**defaults, **cache}),
        scheduler_config=SimpleNamespace(max_num_seqs=max_num_seqs),
        parallel_config=SimpleNamespace(tensor_parallel_size=1),
    )


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A CPU machine with 8 GiB free."""
    monkeypatch.setattr(kv_cache, "current_platform", SimpleNamespace(is_cpu=lambda: True))
    monkeypatch.setattr(kv_cache, "available", lambda: 8 * GIB)


def test_all_rows_if_they_fit_in_half_and_one_at_least():
    source = random.Random()
    for _ in range(1000):
        room, sequence, rows = (source.randrange(1, 10**n) for n in (9, 8, 3))
        size = kv_cache.choose(room, sequence, rows)
        if sequence > room:
            assert size is None
        elif rows * sequence <= room / 2:
            assert size == rows * sequence
        else:
            assert size == max(sequence, room // 2)


def test_the_size_of_a_small_model():
    config = engine()
    assert kv_cache.weights(config) == 2 * sum(
        (100 * 64, 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 64 + 2 * 64), 64)
    )
    assert kv_cache.SETTING in kv_cache.fit(config)
    # 16 sequences · 2048 tokens · 2 layers · keys and values · 2 heads · 16 dimensions · 2 bytes
    assert config.cache_config.kv_cache_memory_bytes == 16 * 2048 * 2 * 2 * 2 * 16 * 2


@pytest.mark.parametrize(
    ("chosen", "too_much"),
    [
        ({"kv_cache_memory_bytes": GIB}, {"kv_cache_memory_bytes": 9 * GIB}),
        ({"gpu_memory_utilization": 0.4}, {"gpu_memory_utilization": 0.6}),
    ],
    ids=str,
)
def test_what_the_user_has_chosen_stays_if_it_is_free(chosen, too_much, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=16 * GIB))
    config = engine(**chosen)
    assert kv_cache.fit(config) is None
    assert config.cache_config.kv_cache_memory_bytes == chosen.get("kv_cache_memory_bytes")
    with pytest.raises(
        StartError, match=r"8\.0 GiB of memory are free, not the requested 9\.\d GiB"
    ):
        kv_cache.fit(engine(**too_much))


def test_too_little_memory_is_one_clear_line():
    config = engine(max_model_len=2**26)  # 16 GiB
    with pytest.raises(StartError, match=r"16\.0 GiB of K/V for one request") as refused:
        kv_cache.fit(config)
    assert "--max-model-len" in refused.value.message
    assert config.cache_config.kv_cache_memory_bytes is None


def control_group(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


def test_control_groups_bound_the_free_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=9 * GIB))
    groups = tmp_path / "groups"
    assert memory.available(tmp_path, groups) == 9 * GIB
    groups.write_text("0::/user/job\n")
    assert memory.available(tmp_path, groups) == 9 * GIB
    stat = f"anon 1\ninactive_file {GIB}"
    facts = {"memory__current": 3 * GIB, "memory__stat": stat}
    control_group(tmp_path / "user" / "job", memory__max="max", **facts)
    assert memory.available(tmp_path, groups) == 9 * GIB
    control_group(tmp_path / "user", memory__max=6 * GIB, **facts)  # an outer group's limit
    assert memory.available(tmp_path, groups) == 4 * GIB
    groups.write_text("4:memory:/job\n")  # version 1
    facts = {"memory__usage_in_bytes": 2 * GIB, "memory__stat": stat}
    control_group(tmp_path / "memory" / "job", memory__limit_in_bytes=3 * GIB, **facts)
    assert memory.available(tmp_path, groups) == 2 * GIB
