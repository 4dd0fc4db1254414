"""Every kind of checkpoint as every family: it serves what it says, or is refused in one line."""

import shutil

import numpy as np
import pytest
import torch

import kinds_made
import tokenizers_made
from trimtab.config import GuidanceConfig
from trimtab.errors import ScorerLoadError
from trimtab.loading import load_scorers
from trimtab.scoring.text import Prompt

FAMILIES = ("head", "distribution", "vocabulary", "log_ratio", "text")
SERVED = {
    "lm": {"vocabulary", "log_ratio"},
    "lm-tied": {"vocabulary", "log_ratio"},
    "token": {"head", None},
    "token-3": set(),
    "token-tied": {"head", None},
    "sequence": {"head", "text", None},
    "sequence-3": {"text"},
    "bare": set(),
    "encoder": set(),
    "encoder-masked": set(),
    "encoder-token": set(),
    "encoder-sequence": {"text"},
    "encoder-decoder": set(),
    "lora-lm": {"vocabulary", "log_ratio"},
    "lora-seq": {"head", "text", None},
    "lora-tok": {"head", None},
    "our-head": {"head", None},
    "our-distribution": {"distribution", None},
    "our-vocabulary": {"vocabulary", None},
    "our-log_ratio": {"log_ratio", None},
}
"""By checkpoint, the families that it may be served as; None is a family left out."""
FOREIGN = ("Error", "Traceback", "torch", "pydantic", "state_dict", "transformers.models")


@pytest.fixture(scope="module")
def base():
    return tokenizers_made.base()


@pytest.fixture(scope="module")
def shelf(base, tmp_path_factory):
    root = tmp_path_factory.mktemp("kinds")
    kinds_made.build(root, base)
    return root


def load(base, path, **spec):
    config = GuidanceConfig.parse({"trimtab": {"scorers": {"s": {"path": str(path), **spec}}}})
    [scorer] = load_scorers(config, max_length=48, vocab_size=len(base), tokenizer=base).values()
    return scorer


@pytest.mark.parametrize("name", SERVED)
@pytest.mark.parametrize("family", [None, *FAMILIES])
def test_a_checkpoint_serves_what_it_says_or_is_refused(name, family, base, shelf):
    spec = {} if family is None else {"family": family}
    if name == "sequence-3" and family == "text":
        spec["label"] = "LABEL_1"
    if family in SERVED[name]:
        scorer = load(base, shelf / name, **spec)
        assert scorer.family == (family or scorer.family)
        arguments = [0], [np.arange(5, 12)], [np.array([7, 20, 40])], [1.0], [Prompt(3)]
        scores = scorer.score(*arguments)
        assert torch.isfinite(scores).all()
        assert len(set(scores.tolist())) == 3
        return
    with pytest.raises(ScorerLoadError) as refused:
        load(base, shelf / name, **spec)
    message = str(refused.value)
    assert message.startswith("scorer 's' cannot be loaded: ")
    assert "\n" not in message
    assert not [word for word in FOREIGN if word in message], message


@pytest.mark.parametrize("name", SERVED)
def test_a_reference_model_is_a_language_model(name, base, shelf):
    spec = {"family": "log_ratio", "reference": str(shelf / name)}
    if "log_ratio" in SERVED[name] or name == "our-log_ratio":
        load(base, shelf / "lm", **spec)
        return
    with pytest.raises(ScorerLoadError) as refused:
        load(base, shelf / "lm", **spec)
    assert "\n" not in str(refused.value)


def test_a_language_model_may_not_guess_its_family(base, shelf):
    """The adapter of a language model once was a head that reads the logit of token 0."""
    for name in ("lm", "lora-lm"):
        with pytest.raises(ScorerLoadError, match="family=log_ratio or family=vocabulary"):
            load(base, shelf / name)


def test_a_class_that_transformers_does_not_have_is_refused(base, shelf, tmp_path):
    path = shutil.copytree(shelf / "token", tmp_path / "mine")
    config = (path / "config.json").read_text()
    changed = config.replace("LlamaForTokenClassification", "LlamaForRewardModelWithGating")
    assert changed != config
    (path / "config.json").write_text(changed)
    with pytest.raises(ScorerLoadError, match="never run"):
        load(base, path)
    without = config.replace('"LlamaForTokenClassification"', "")
    (path / "config.json").write_text(without)
    assert load(base, path).family == "head"  # it says nothing, so its weights decide
    with pytest.raises(ScorerLoadError, match="lacks the weights lm_head"):
        load(base, path, family="log_ratio")


def test_a_head_without_a_name_is_no_language_model(base, shelf, tmp_path):
    """Nothing is missing where the output is tied to the input; the head is what would be lost."""
    path = shutil.copytree(shelf / "token-tied", tmp_path / "mine")
    config = (path / "config.json").read_text().replace('"LlamaForTokenClassification"', "")
    (path / "config.json").write_text(config)
    with pytest.raises(ScorerLoadError, match=r"score\.bias, score\.weight"):
        load(base, path, family="log_ratio")
