"""The engine starts with prefix pools of a size that fits its requests and its memory."""

import warnings
from types import SimpleNamespace

import pytest
import torch

from trimtab.config import CACHE_BYTES
from trimtab_models import demo

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # vLLM's import warns of its own code
    from trimtab.adapters.vllm import pools, processor

GIB = 2**30


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """12 GiB are free; the base has 1, the K/V cache 2, and 1 is for everything else."""
    monkeypatch.setattr(pools.memory, "available", lambda: 12 * GIB)
    monkeypatch.setattr(pools.kv_cache, "weights", lambda config: GIB)


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
    return pools.choose(some)


def test_a_quarter_of_what_the_base_leaves():
    size, line = sized(config())
    assert size == 2 * GIB
    assert "have 2048 MiB; 256 requests of 8192 tokens need" in line
    assert sized(config(engines=2))[0] == GIB


def test_least_size_where_the_memory_is_not_known(monkeypatch):
    assert sized(config(cache=None))[0] == CACHE_BYTES
    monkeypatch.setattr(pools.current_platform, "is_cpu", lambda: False)
    size, line = sized(config())
    assert size == CACHE_BYTES
    assert "have 256 MiB" in line


def test_a_chosen_size_stays():
    size, line = sized(config(cache_bytes=2**30))
    assert size == 2**30
    assert "--cache-bytes" in line


def engine_of(some, monkeypatch):
    """An offline engine's configuration, which the options become."""

    def made(model, **options):
        some.additional_config = options.get("additional_config", {})
        return SimpleNamespace(create_engine_config=lambda usage: some)

    monkeypatch.setattr(pools, "EngineArgs", made)
    monkeypatch.setattr(pools.kv_cache, "fit", lambda config: None)


def test_an_offline_engine_has_the_same(monkeypatch, caplog):
    some = config()
    options = {"additional_config": some.additional_config}
    engine_of(some, monkeypatch)
    with caplog.at_level("WARNING", "trimtab"):
        pools.fit_options("base", options)
    assert options["additional_config"]["trimtab"]["cache_bytes"] == 2 * GIB
    assert "256 requests of 8192 tokens need" in caplog.text
    options = {"max_num_seqs": 4}  # without scorers
    pools.fit_options("base", options)
    assert options == {"max_num_seqs": 4}


def test_an_offline_engine_on_a_gpu_keeps_the_least(monkeypatch):
    monkeypatch.setattr(pools.current_platform, "is_cpu", lambda: False)
    options = {"additional_config": config().additional_config}
    pools.fit_options("base", options)
    assert "cache_bytes" not in options["additional_config"]["trimtab"]


@pytest.mark.parametrize(("own", "expected"), [({}, 2 * GIB), ({"cache_bytes": GIB}, GIB)])
def test_a_stock_engine_chooses_as_it_starts(own, expected, monkeypatch):
    """Its processor does; trimtab serve has chosen before."""
    some, seen = config(**own), []
    some.num_speculative_tokens = 0
    some.model_config = SimpleNamespace(
        **vars(some.model_config),
        get_vocab_size=lambda: 64,
        trust_remote_code=False,
        tokenizer=None,
        model="base",
    )
    monkeypatch.setattr(processor.unsupported, "check_config", lambda config: None)
    monkeypatch.setattr(processor.ranks, "leads", lambda: True)
    monkeypatch.setattr(
        processor.ranks, "on_leader", lambda build, config: seen.append(config) or {}
    )
    made = processor.GuidanceProcessor(some, "cpu", object())
    assert [one.cache_bytes for one in seen] == [expected]
    assert made.share == expected // len(demo.scorers())
