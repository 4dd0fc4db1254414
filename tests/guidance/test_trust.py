"""vLLM's --trust-remote-code is about the base: its tokenizer comes from vLLM then, no other."""

import warnings
from types import SimpleNamespace

with warnings.catch_warnings():  # vLLM's own, as it is imported
    warnings.simplefilter("ignore")
    from trimtab.adapters.vllm import processor as adapter


def test_only_a_trusted_base_has_vllm_load_its_tokenizer(monkeypatch):
    loads = []
    monkeypatch.setattr(adapter, "cached_tokenizer_from_config", loads.append)
    plain = SimpleNamespace(trust_remote_code=False, tokenizer="org/base")
    assert adapter._tokenizer(plain) == "org/base"
    assert not loads
    trusted = SimpleNamespace(trust_remote_code=True, tokenizer="org/base")
    assert adapter._tokenizer(trusted) is None
    assert loads == [trusted]
