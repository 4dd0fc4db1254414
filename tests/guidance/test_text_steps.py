"""Process reward models: an answer is scored at the end of each of its steps."""

import math

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForTokenClassification, AutoTokenizer

import tokenizers_made
from kinds_made import bert, llama, made
from trimtab.config import GuidanceConfig, parse_scorer
from trimtab.errors import ScorerLoadError
from trimtab.loading import load_scorers
from trimtab.scorers.steps import Steps
from trimtab.scoring.text import Prompt
from trimtab.testing import check_scorer

PROMPT = "Write a review."
LABELS = {"id2label": {0: "wrong", 1: "right"}, "num_labels": 2}
ANSWER = " The room was lovely. The staff was rude. Bad"


@pytest.fixture(scope="module")
def base():
    return tokenizers_made.base()


@pytest.fixture(scope="module")
def models(base, tmp_path_factory):
    root = tmp_path_factory.mktemp("steps")
    made("token", llama(len(base), **LABELS)).save_pretrained(root / "decoder")
    base.save_pretrained(root / "decoder")
    made("token", bert(len(base), **LABELS), 1).save_pretrained(root / "encoder")
    tokenizer = tokenizers_made.base()
    end = tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, tokenizer.eos_token_id)]
    )
    tokenizer.save_pretrained(root / "encoder")
    made("sequence", llama(len(base), num_labels=1, pad_token_id=0), 2).save_pretrained(
        root / "sequence"
    )
    base.save_pretrained(root / "sequence")
    return root


def load(base, path, **fields):
    spec = {"path": str(path), "family": "text", "reads": "text", **fields}
    config = GuidanceConfig.parse({"trimtab": {"scorers": {"s": spec}}})
    return load_scorers(config, max_length=512, vocab_size=len(base), tokenizer=base)["s"]


def of_transformers(path, text, at):
    """log P(right) at a token of a text, alone in a batch."""
    ids = AutoTokenizer.from_pretrained(path)(text, return_tensors="pt")
    model = AutoModelForTokenClassification.from_pretrained(path).eval()
    with torch.inference_mode():
        return float(model(**ids).logits[0, at].log_softmax(-1)[1])


def scored(scorer, base, answer, tokens):
    ids = base(PROMPT + answer, add_special_tokens=False)["input_ids"]
    prompt = Prompt(len(base(PROMPT, add_special_tokens=False)["input_ids"]))
    return scorer.score([0], [np.array(ids)], [np.array(tokens)], [1.0], [prompt]).tolist()


def one_token(base, text):
    [token] = base(text, add_special_tokens=False)["input_ids"]
    return token


@pytest.mark.parametrize(("kind", "at"), [("decoder", -1), ("encoder", -2)])
@pytest.mark.parametrize("aggregate", ["last", "min", "product"])
def test_scores_are_those_of_transformers_at_the_delimiters(kind, at, aggregate, base, models):
    path = models / kind
    scorer = load(base, path, delimiter=".", aggregate=aggregate, label="right")
    dot, letter = one_token(base, "."), one_token(base, "a")
    whole = PROMPT + ANSWER + "."
    ends = [i + 1 for i, letter in enumerate(whole) if letter == "." and i >= len(PROMPT)]
    steps = [of_transformers(path, whole[:end], at) for end in ends]
    assert len(set(steps)) == 3
    combine = {"last": lambda s: s[-1], "min": min, "product": sum}[aggregate]
    values = scored(scorer, base, ANSWER, [dot, letter, base.eos_token_id])
    # A candidate that ends no step keeps the score; the end of the answer ends its last step.
    expected = [combine(steps), combine(steps[:2]), combine(steps)]
    assert values == pytest.approx(expected, abs=1e-5)
    first = scored(scorer, base, " The room", [letter, base.eos_token_id])
    assert first[0] == 0
    assert first[1] == pytest.approx(of_transformers(path, f"{PROMPT} The room.", at), abs=1e-5)


def test_a_step_is_read_once(base, models):
    scorer = load(base, models / "decoder", delimiter=".", label="1")
    letter = one_token(base, "a")
    scored(scorer, base, ANSWER, [letter])
    before = scorer.tokens_forwarded
    scored(scorer, base, ANSWER, [letter, one_token(base, "b")])
    assert scorer.tokens_forwarded == before > 0


def test_a_mark_may_stand_for_the_delimiter(base, models):
    path = models / "decoder"
    scorer = load(base, path, delimiter=".", step_token="#", label="right")
    [value] = scored(scorer, base, " Bad. Good", [one_token(base, ".")])
    expected = of_transformers(path, f"{PROMPT} Bad# Good#", -1)
    assert value == pytest.approx(expected, abs=1e-5)


def test_a_reward_model_of_whole_texts_may_score_steps(base, models):
    """A sequence classifier, whose score is of the text up to the delimiter."""
    steps = load(base, models / "sequence", delimiter=".")
    plain = load(base, models / "sequence")
    dot = one_token(base, ".")
    assert scored(steps, base, " Bad", [dot]) == scored(plain, base, " Bad", [dot])
    assert scored(steps, base, " Bad. The", [dot + 1]) == scored(plain, base, " Bad", [dot])


def test_the_contract_of_scorers(base, models):
    scorer = load(base, models / "decoder", delimiter=".", label="right")
    check_scorer(scorer, vocab_size=len(base))


def test_steps_of_an_answer():
    steps = Steps("\n\n", "product")
    assert steps.texts("a\n\nb\n", ended=False) == ["a\n\n"]
    assert steps.texts("a\n\nb\n", ended=True) == ["a\n\n", "a\n\nb\n\n\n"]
    assert steps.texts("a\n\n\n\nb", ended=False) == ["a\n\n"]
    assert steps.texts("", ended=True) == []
    assert Steps("\n", step_token="<+>").texts("a\nb", ended=True) == ["a<+>", "a<+>b<+>"]
    assert steps.value([]) == 0
    assert steps.value([math.log(0.5), math.log(0.25)]) == pytest.approx(math.log(0.125))
    assert Steps("x", "min").value([-1.0, -3.0, -2.0]) == -3.0


def test_what_cannot_be_served_is_refused(base, models):
    with pytest.raises(ScorerLoadError, match="has no classifier of texts"):
        load(base, models / "decoder")
    with pytest.raises(ScorerLoadError, match="choose the one to score by label"):
        load(base, models / "decoder", delimiter=".")
    for fields, message in (
        ("family=text,aggregate=min", "need a delimiter"),
        ("family=head,delimiter=.", "needs family=text"),
        ("family=text,delimiter=.,aggregate=zebra", "aggregate"),
        ("family=text,delimiter=", "delimiter"),
    ):
        with pytest.raises(ScorerLoadError, match=message):
            parse_scorer(f"prm=some/model,{fields}")
    _, fields = parse_scorer("prm=some/model,family=text,delimiter=\\n\\n,aggregate=min")
    assert fields["delimiter"] == "\n\n"
