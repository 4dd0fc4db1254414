"""The engine starts with prefix pools of a size that fits its requests and its memory."""

import warnings
from types import SimpleNamespace

import pytest
import torch

from trimtab.config import CACHE_BYTES
from trimtab_models import demo

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # vLLM's import warns of its own code
    from trimtab_server.vllm import engine

GIB = 2**30


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """12 GiB are free; the base has 1, the K/V cache 2, and 1 is for everything else."""
    monkeypatch.setattr(engine.memory, "available", lambda: 12 * GIB)
    monkeypatch.setattr(engine.kv_cache, "weights", lambda config: GIB)


def config(cpu=True, cache=2 * GIB, engines=1, **own):
    scorers = {name: {"path": str(path)} for name, path in demo.scorers().items()}
    return SimpleNamespace(
        additional_config={"trimtab": {"scorers": scorers, **own}},
        cache_config=SimpleNamespace(kv_cache_memory_bytes=cache),
        model_config=SimpleNamespace(max_model_len=8192, dtype=torch.bfloat16),
        parallel_config=SimpleNamespace(data_parallel_size=engines),
        scheduler_config=SimpleNamespace(max_num_seqs=256),
    )


def sized(some):
    line = engine.size_pools(some)
    return some.additional_config["trimtab"]["cache_bytes"], line


def test_a_quarter_of_what_the_base_leaves():
    size, line = sized(config())
    assert size == 2 * GIB
    assert "have 2048 MiB; 256 requests of 8192 tokens need" in line
    assert sized(config(engines=2))[0] == GIB


def test_least_size_where_the_memory_is_not_known(monkeypatch):
    assert sized(config(cache=None))[0] == CACHE_BYTES
    monkeypatch.setattr(engine.current_platform, "is_cpu", lambda: False)
    size, line = sized(config())
    assert size == CACHE_BYTES
    assert "have 256 MiB" in line


def test_a_chosen_size_stays():
    size, line = sized(config(cache_bytes=2**30))
    assert size == 2**30
    assert "--cache-bytes" in line
