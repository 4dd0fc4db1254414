"""Classifiers of text: scores are transformers' own on the same text."""

import random

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig

import tokenizers_made
from trimtab.config import GuidanceConfig
from trimtab.errors import ScorerLoadError
from trimtab.guide import Guide
from trimtab.loading import load_scorers
from trimtab.params import GuidanceParams
from trimtab.rows import PromptContext, Row
from trimtab.scorers import TextScorer
from trimtab.scoring.text import Prompt, Reader, reason, template
from trimtab.testing import check_scorer
from trimtab_models import demo
from trimtab_models.demo import foreign

KINDS = ("deberta", "roberta")
TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}[assistant] "
TURNS = [{"role": "user", "content": "Write a review of the phone."}]


@pytest.fixture(scope="module")
def base():
    return tokenizers_made.base()


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    root = tmp_path_factory.mktemp("classifiers")
    for kind in KINDS:
        foreign.build(kind, root / kind, steps=2)
    torch.manual_seed(0)
    tokenizer = tokenizers_made.split_by_expression()
    tokenizer.chat_template = TEMPLATE
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        id2label={0: "calm", 1: "neutral", 2: "angry"},
        pad_token_id=None,
    )
    model = AutoModelForSequenceClassification.from_config(config)
    model.save_pretrained(root / "decoder")
    tokenizer.save_pretrained(root / "decoder")
    return root


def load(base, **specs):
    specs = {name: {"family": "text"} | spec for name, spec in specs.items()}
    config = GuidanceConfig.parse({"trimtab": {"scorers": specs}})
    return load_scorers(config, max_length=512, vocab_size=len(base), tokenizer=base)


def of_transformers(path, *texts, label=None, special=True):
    """The score of one text, or a pair, alone in a batch."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    inputs = tokenizer(*texts, return_tensors="pt", add_special_tokens=special)
    with torch.inference_mode():
        logits = model(**inputs).logits[0]
    return float(logits[0] if label is None else logits.log_softmax(-1)[label])


def rows(base, n, seed=0):
    """Prompts and answers of the demo world, with candidates: some right, some strays."""
    draw, texts = random.Random(seed), foreign.reviews(seed)
    prompt = base("Write a review.", add_special_tokens=False)["input_ids"]
    prefixes, candidates = [], []
    for _ in range(n):
        ids = base(" " + next(texts), add_special_tokens=False)["input_ids"]
        at = draw.randrange(1, min(len(ids), 60))
        prefixes.append(np.array([*prompt, *ids[:at]]))
        strays = [draw.randrange(len(base)) for _ in range(draw.randrange(4))]
        candidates.append(np.array([ids[at], *strays]))
    return prefixes, candidates, [Prompt(len(prompt))] * n


def answers(base, prefixes, candidates, prompts):
    return [
        base.decode([*prefix[prompt.length :], token], skip_special_tokens=True).rstrip("\ufffd")
        for prefix, group, prompt in zip(prefixes, candidates, prompts, strict=True)
        for token in group
    ]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reads", ["text", "answer", "pair"])
def test_scores_are_those_of_transformers(kind, reads, base, checkpoints):
    path = str(checkpoints / kind)
    scorer = load(base, s={"path": path, "reads": reads})["s"]
    prefixes, candidates, prompts = rows(base, 12)
    result = scorer.score(list(range(12)), prefixes, candidates, [1.0] * 12, prompts)
    parts = {
        "text": lambda answer: ["Write a review." + answer],
        "answer": lambda answer: [answer],
        "pair": lambda answer: ["Write a review.", answer],
    }[reads]
    texts = answers(base, prefixes, candidates, prompts)
    expected = [of_transformers(path, *parts(answer)) for answer in texts]
    torch.testing.assert_close(result, torch.tensor(expected), atol=1e-5, rtol=1e-5)
    spent = scorer.tokens_forwarded
    again = scorer.score(list(range(12)), prefixes, candidates, [1.0] * 12, prompts)
    assert torch.equal(again, result)
    assert scorer.tokens_forwarded == spent > 0  # they were remembered


@pytest.mark.parametrize(("label", "number"), [("angry", 2), ("0", 0)])
def test_a_label_of_several_through_its_own_template(label, number, base, checkpoints):
    path = str(checkpoints / "decoder")
    scorer = load(base, s={"path": path, "label": label})["s"]
    assert scorer.reads == "chat"
    prefixes, candidates, prompts = rows(base, 5)
    with_turns = [Prompt(prompt.length, TURNS) for prompt in prompts]
    for contexts, content in ((with_turns, TURNS[0]["content"]), (prompts, "Write a review.")):
        result = scorer.score([1, 2, 3, 4, 5], prefixes, candidates, [1.0] * 5, contexts)
        texts = answers(base, prefixes, candidates, prompts)
        start = f"[user] {content} [assistant] "
        # The window is 64 tokens: see below for texts that are longer.
        cut = [AutoTokenizer.from_pretrained(path)(start + text).input_ids[-64:] for text in texts]
        model = AutoModelForSequenceClassification.from_pretrained(path).eval()
        with torch.inference_mode():
            logits = [model(torch.tensor([ids])).logits[0].log_softmax(-1) for ids in cut]
        expected = torch.stack(logits)[:, number]
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)


def test_long_texts_lose_the_beginning_of_the_prompt(base, checkpoints):
    path = str(checkpoints / "roberta")
    tokenizer = AutoTokenizer.from_pretrained(path)
    prompt, answer = "The phone is good. " * 80, "It is a very bad tablet."
    prompt_ids = base(prompt, add_special_tokens=False)["input_ids"]
    ids = base(answer, add_special_tokens=False)["input_ids"]
    prefix = np.array([*prompt_ids, *ids[:-1]])
    for reads in ("text", "pair"):
        scorer = load(base, s={"path": path, "reads": reads})["s"]
        assert scorer.window == foreign.WINDOW
        arguments = ([9], [prefix], [np.array(ids[-1:])], [1.0], [Prompt(len(prompt_ids))])
        result = float(scorer.score(*arguments)[0])
        parts = [prompt + answer] if reads == "text" else [prompt, answer]
        whole = tokenizer(*parts)["input_ids"]
        lost = len(whole) - foreign.WINDOW
        assert scorer.shortened(9) == lost > 0
        model = AutoModelForSequenceClassification.from_pretrained(path).eval()
        with torch.inference_mode():
            kept = torch.tensor([[whole[0], *whole[1 + lost :]]])
            assert result == pytest.approx(float(model(kept).logits[0, 0]), abs=1e-5)
    # The answer is cut only where nothing is left of the prompt.
    long = np.array(base("bad " * 600, add_special_tokens=False)["input_ids"])
    last = scorer.score([9], [np.append(prompt_ids, long)], [long[-1:]], [1.0], arguments[-1])
    assert torch.isfinite(last).all()
    assert scorer.shortened(9) > 300


def test_what_is_shortened_is_on_record(base, checkpoints):
    scorers = load(base, s={"path": str(checkpoints / "roberta")})
    guide = Guide(scorers)
    params = GuidanceParams(scorers={"s": 1.0}, k=3, mass=1.0)
    prompt = np.array(base("good " * 400, add_special_tokens=False)["input_ids"])
    row = Row(
        params, len(prompt), record_key="r", prefix=prompt, context=PromptContext(turns=TURNS)
    )
    guide.step(torch.randn(1, len(base)), [(0, row)])
    [record] = guide.records.report("r", prompt.tolist(), [[5]], True)
    assert record["shortened"]["s"] > 100
    assert record["error"] is None


def test_the_contract_of_scorers(base, checkpoints):
    specs = {kind: {"path": str(checkpoints / kind)} for kind in KINDS}
    for scorer in load(base, **specs).values():
        assert isinstance(scorer, TextScorer)
        check_scorer(scorer, vocab_size=len(base))


@pytest.mark.parametrize(
    ("kind", "spec", "message"),
    [
        ("decoder", {}, "calm, neutral, angry"),
        ("decoder", {"label": "cross"}, "calm, neutral, angry"),
        ("deberta", {"label": "cross"}, "LABEL_0"),
        ("deberta", {"reads": "chat"}, "no chat template"),
        ("deberta", {"reads": "tokens"}, "reads must be one of"),
    ],
)
def test_what_cannot_be_served_is_refused_at_start(kind, spec, message, base, checkpoints):
    with pytest.raises(ScorerLoadError, match=message):
        load(base, s={"path": str(checkpoints / kind), **spec})


def test_a_language_model_is_no_classifier(base):
    from trimtab_models import demo

    with pytest.raises(ScorerLoadError, match="no classifier"):
        load(base, s={"path": str(demo.base())})


def test_a_templates_reason_is_one_short_line_of_its_own_words():
    source = "{{ raise_exception('roles must alternate, not ' ~ messages[0].role) }}"
    for raised, message in (
        ("roles must alternate, not zebra\nmore", "roles must alternate, not …"),
        ("roles must alternate.", "roles must alternate"),
        ("zebra crossing", "ValueError"),
        ("", "ValueError"),
        ("not " * 1000, ("not " * 50).strip()),
    ):
        assert reason(ValueError(raised), source) == message


def test_what_a_chat_template_refuses_is_known_before_it_is_scored():
    class Tokenizer:
        chat_template = "{{ raise_exception('no system turn') }}"

        def apply_chat_template(self, turns, **options):
            if turns[0]["role"] == "system":
                raise RuntimeError(f"no system turn: {turns[0]['content']}")
            return "x"

    reader = Reader(None, template(Tokenizer()))
    assert reader.refusal([{"role": "system", "content": "secret"}]) == "no system turn: …"
    assert reader.refusal([{"role": "user", "content": "secret"}]) is None
    assert Reader(None).refusal([{"role": "system", "content": "secret"}]) is None


def test_a_turn_that_is_open_is_gone_on_from():
    tokenizer = AutoTokenizer.from_pretrained(demo.base())
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    render = template(tokenizer)
    turns = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Well,"}]
    assert render(turns) == "<user>Hi.</><assistant>Well,</><assistant>"
    turns[1]["open"] = True
    assert render(turns) == "<user>Hi.</><assistant>Well,"
