"""What `trimtab` exports: light to import, documented, and equal to the modules behind it."""

import inspect
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessorList

import trimtab
from trimtab import Guidance, GuidanceParams, InvalidGuidance, ScorerFault, UnknownScorer
from trimtab_models import demo

HEAVY = ("torch", "transformers", "vllm")


@pytest.mark.slow
def test_importing_it_is_light():
    code = f"import sys, trimtab; assert not set({HEAVY}) & set(sys.modules); trimtab.Guidance"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_name_is_there_and_documented():
    assert set(trimtab.__all__) <= set(dir(trimtab))
    for name in trimtab.__all__:
        assert inspect.getdoc(getattr(trimtab, name)), name
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = trimtab.nothing_like_it


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(demo.base(), padding_side="left")


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(demo.base(), dtype=torch.float32)


@pytest.fixture(scope="module")
def guidance(tokenizer):
    return Guidance(demo.scorers(), tokenizer, weights={"sentiment": 1.0}, beta=4.0)


def test_it_steers_generate(model, tokenizer, guidance):
    """As the guide by hand does, padding and all."""
    inputs = tokenizer(
        ["The room", "We stayed at the hotel and"], return_tensors="pt", padding=True
    )
    options = {"max_new_tokens": 8, "do_sample": False}
    processors = guidance.processors(**inputs)
    assert isinstance(processors, LogitsProcessorList)
    together = model.generate(**inputs, **options, logits_processor=processors)
    alone = tokenizer("The room", return_tensors="pt")
    single = model.generate(**alone, **options, logits_processor=guidance.processors(**alone))
    base = model.generate(**alone, **options)
    new = together[0, inputs.input_ids.shape[1] :].tolist()
    assert single[0, alone.input_ids.shape[1] :].tolist() == new
    assert base[0, alone.input_ids.shape[1] :].tolist() != new


def test_it_scores_texts(tokenizer, guidance):
    texts = ["The room was lovely.", "The room was dirty and loud.", "The room was lovely."] * 100
    scores = guidance.score(texts)
    assert set(scores) == {"sentiment"}
    liked, disliked = scores["sentiment"][:2]
    assert liked > disliked
    np.testing.assert_allclose(scores["sentiment"], [liked, disliked, liked] * 100, atol=1e-4)
    scorer = guidance.guide.registry.scorers["sentiment"]
    ids = np.array(tokenizer(texts[0]).input_ids)
    expected = float(scorer.score([-1], [ids[:-1]], [ids[-1:]], [4.0])[0])
    assert liked == pytest.approx(expected, abs=1e-4)
    assert guidance.score([]) == {"sentiment": []}


def test_bad_input_is_named(tokenizer, guidance):
    with pytest.raises(InvalidGuidance, match="two tokens"):
        guidance.score(["The"])
    with pytest.raises(InvalidGuidance, match="beta"):
        Guidance(demo.scorers(), tokenizer, beta="strong")
    with pytest.raises(UnknownScorer):
        Guidance(demo.scorers(), tokenizer, weights={"nobody": 1.0})


def raises(ids):
    raise RuntimeError("planted")


def test_a_scorer_that_fails_is_named(tokenizer):
    broken = Guidance({"x": {"path": f"{__name__}:raises", "family": "function"}}, tokenizer)
    with pytest.raises(ScorerFault, match="scorer 'x' raised RuntimeError while scoring"):
        broken.score(["The room was"])


def test_it_takes_the_parameters_of_requests(tokenizer, guidance):
    assert guidance.params == GuidanceParams(beta=4.0, scorers={"sentiment": 1.0})
