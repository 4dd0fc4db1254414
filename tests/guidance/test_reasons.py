"""Why something does not load: one line of ours, wherever it is seen."""

import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pydantic
import pytest
import torch
from safetensors.torch import load_file, save_file

import kinds_made
import test_kinds
import tokenizers_made
from trimtab import reasons
from trimtab.config import GuidanceConfig, parse_scorer
from trimtab.errors import ScorerLoadError
from trimtab.loading import load_scorers, precheck
from trimtab_models import demo


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    root = tmp_path_factory.mktemp("kinds")
    kinds_made.build(root, tokenizers_made.base())
    return root


@pytest.mark.parametrize("name", test_kinds.SERVED)
@pytest.mark.parametrize("family", [None, *test_kinds.FAMILIES])
def test_what_loading_refuses_is_refused_before_an_engine_starts(name, family, shelf):
    """But for what only a forward tells: encoders as heads, and a support that is not known."""
    spec = {"path": str(shelf / name)}
    spec |= {} if family is None else {"family": family}
    spec |= {"label": "LABEL_1"} if name == "sequence-3" and family == "text" else {}
    config = GuidanceConfig.parse({"trimtab": {"scorers": {"s": spec}}})
    late = family == "distribution" or name.startswith("encoder-")
    if family in test_kinds.SERVED[name]:
        precheck(config)
        return
    with suppress(ScorerLoadError) if late else pytest.raises(ScorerLoadError) as refused:
        precheck(config)
    assert late or "\n" not in str(refused.value)


def test_a_missing_weight_is_seen_without_reading_the_others(shelf, tmp_path):
    path = shutil.copytree(shelf / "token", tmp_path / "headless")
    tensors = load_file(path / "model.safetensors")
    tensors.pop("score.weight")
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    config = GuidanceConfig.parse({"trimtab": {"scorers": {"s": {"path": str(path)}}}})
    with pytest.raises(ScorerLoadError, match=r"lacks the weights score\.weight"):
        precheck(config)


@pytest.mark.slow
def test_serve_says_why_in_one_line(tmp_path):
    path = tmp_path / "headless"
    shutil.copytree(demo.scorers()["sentiment"], path)
    tensors = load_file(path / "model.safetensors")
    tensors.pop("score.weight")
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    (path / "MANIFEST.json").unlink(missing_ok=True)
    serve = [sys.executable, "-m", "trimtab_server.cli", "serve", "demo", "--port", "0"]
    done = subprocess.run(
        [*serve, "--scorer", f"x={path}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    lines = [line for line in done.stderr.splitlines() if "Loading weights" not in line and line]
    assert lines == [
        f"trimtab: scorer 'x' cannot be loaded: {path} lacks the weights score.weight of a "
        "LlamaForTokenClassification."
    ]
    assert done.returncode == 1
    assert not done.stdout


def test_a_worker_leaves_its_reason():
    with reasons.collect_reason() as reason:
        assert reason() is None
        child = "from trimtab import errors, reasons\nreasons.report(errors.ScorerLoadError('why'))"
        subprocess.run([sys.executable, "-c", child], check=True)
        assert reason() == "why"
    assert reasons.PLACE not in os.environ
    reasons.report(ScorerLoadError("nobody waits"))


def test_errors_of_others_are_passed_on_by_name():
    many = "Error(s) in loading state_dict:\n\tsize mismatch for /home/me/x.weight"
    for error in (RuntimeError(many), torch.OutOfMemoryError(many), KeyError(many)):
        reason = reasons.why(error)
        assert type(error).__name__ in reason
        assert "size mismatch" not in reason
    with pytest.raises(FileNotFoundError) as missing:
        Path("/nowhere/at/all").read_text()
    assert (
        reasons.why(missing.value) == "its files cannot be read (all: No such file or directory)."
    )


def test_a_configuration_that_does_not_fit_is_one_line():
    for section in (
        {"scorers": {"x": {"path": "p", "family": "Grand one"}}},
        {"scorers": {"x": {"path": ""}}},
        {"scorers": {"X": {"path": "p"}}},
        {"scorers": {}, "cache_bytes": "secret", "more": 1},
    ):
        with pytest.raises(ScorerLoadError) as refused:
            GuidanceConfig.parse({"trimtab": section})
        assert "\n" not in str(refused.value)
        assert "secret" not in str(refused.value)
        assert "pydantic" not in str(refused.value)
    with pytest.raises(ScorerLoadError) as refused:
        parse_scorer("x=p,family=head,alpha=much")
    assert "\n" not in str(refused.value)
    with pytest.raises(pydantic.ValidationError) as raw:
        GuidanceConfig(cache_bytes="secret")
    assert "\n" not in reasons.brief(raw.value)
    assert reasons.brief(ValueError("one\n  two")) == "one two"
    assert len(reasons.brief(ValueError("x" * 10**6))) < 1000


def test_a_base_whose_tokenizer_cannot_be_read_is_no_base_without_one(shelf, tmp_path):
    path = shutil.copytree(shelf / "lm", tmp_path / "base")
    (path / "tokenizer.json").write_text("{}")
    config = GuidanceConfig.parse({"trimtab": {"scorers": {"s": {"path": str(shelf / "token")}}}})
    options = {"max_length": 48, "vocab_size": 64}
    with pytest.raises(ScorerLoadError, match="base's tokenizer cannot be used"):
        load_scorers(config, tokenizer=str(path), **options)
    for file in path.glob("tokenizer*"):
        file.unlink()
    load_scorers(config, tokenizer=str(path), **options)
