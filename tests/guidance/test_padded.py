"""One tokenizer, vocabularies padded differently: as Qwen2.5-7B with a scorer made of its 0.5B."""

import shutil

import numpy as np
import pytest
import torch

import kinds_made
import tokenizers_made
from trimtab.config import GuidanceConfig
from trimtab.errors import ScorerLoadError
from trimtab.loading import load_scorers
from trimtab.testing import check_scorer
from trimtab_models.checkpoint import ScorerInfo, save
from trimtab_models.networks import scalar_head, vocabulary_head

FURTHER = 128
"""Rows of padding."""
SUPPORT = {"family": "distribution", "support": (0.0, 1.0)}
KINDS = {
    "head": (scalar_head, {}, {}),
    "distribution": (scalar_head, {"bins": 5}, SUPPORT),
    "ahead": (scalar_head, {"bins": 4}, {**SUPPORT, "ahead": True}),
    "vocabulary": (vocabulary_head, {}, {"family": "vocabulary"}),
    "log_ratio": (vocabulary_head, {}, {"family": "log_ratio"}),
}


@pytest.fixture(scope="module")
def base():
    return tokenizers_made.base()


@pytest.fixture(scope="module")
def shelf(base, tmp_path_factory):
    root = tmp_path_factory.mktemp("padded")
    for rows in (len(base), len(base) + FURTHER):
        for name, (make, options, info) in KINDS.items():
            torch.manual_seed(len(name))
            wide = {"bins": rows * options["bins"]} if "ahead" in info else options
            model = make(kinds_made.llama(rows), **wide)
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    torch.nn.init.normal_(parameter, std=0.2)
            save(model, base, ScorerInfo(**info), root / f"{name}-{rows}")
    return root


def load(base, vocab, **spec):
    config = GuidanceConfig.parse({"trimtab": {"scorers": {"s": spec}}})
    [scorer] = load_scorers(config, max_length=48, vocab_size=vocab, tokenizer=base).values()
    return scorer


def score(scorer, tokens):
    prefixes = [np.arange(5, 12), np.arange(30, 40)]
    return scorer.score([0, 1], prefixes, [np.array(tokens)] * 2, [1.5, -1.0])


@pytest.mark.parametrize("name", [*KINDS, "pair"])
@pytest.mark.parametrize("further", ["base", "scorer"])
def test_padding_changes_nothing(name, further, base, shelf):
    known, padded = len(base), len(base) + FURTHER
    rows, vocab = (known, padded) if further == "base" else (padded, known)
    spec = {"path": str(shelf / f"{name}-{rows}")}
    if name == "pair":
        other = padded if rows == known else known
        spec = {"path": str(shelf / f"log_ratio-{rows}")}
        spec["reference"] = str(shelf / f"log_ratio-{other}")
    scorer, alike = load(base, vocab, **spec), load(base, min(known, rows), **spec)
    tokens = [7, 20, known - 1]
    expected = score(alike, tokens)
    torch.testing.assert_close(score(scorer, tokens), expected, atol=1e-5, rtol=1e-5)
    assert torch.isfinite(score(scorer, [7, vocab - 1])).all()  # which no text holds
    holding = np.array([3, vocab - 1, 9])
    assert torch.isfinite(scorer.score([3], [holding], [np.array([4, 5])], [1.0])).all()
    check_scorer(scorer, vocab_size=vocab)


@pytest.mark.parametrize("name", KINDS)
def test_a_token_that_texts_hold_must_have_a_row(name, base, shelf, tmp_path):
    """The control: the same rows, of a tokenizer that knows one token more."""
    more = tokenizers_made.base()
    more.add_tokens(["<one-more>"])
    ignored = shutil.ignore_patterns("tokenizer*", "MANIFEST.json")  # or it is read as text
    path = shutil.copytree(shelf / f"{name}-{len(base)}", tmp_path / "alone", ignore=ignored)
    with pytest.raises(ScorerLoadError, match=f"embeds {len(base)} tokens"):
        load(more, len(base) + FURTHER, path=str(path))
