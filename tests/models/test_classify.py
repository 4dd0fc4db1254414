"""Sequence classifiers: a text is worth what transformers says of it alone, in any company."""

import json

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BartConfig,
    BertConfig,
    ConvBertConfig,
    GPT2Config,
    LlamaConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    RobertaConfig,
    XLNetConfig,
)

from trimtab_models import classify, demo, rewards
from trimtab_models.files import Unusable

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "max_position_embeddings": 64}
TEXTS = [
    "The room was lovely and the staff",
    "Bad.",
    "It is said to be very good, and then again it is not, by those who know it well.",
    "a",
    "The cafe was rude and the station awful",
    "",
    "Bad. " * 40,
]


def tokenizer(**options):
    return PreTrainedTokenizerFast.from_pretrained(demo.base(), **options)


VOCAB = len(tokenizer())
EOS = tokenizer().eos_token_id


def config(kind, **more):
    plain = {"vocab_size": VOCAB, **SIZES, **HEADS}
    opt = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, **HEADS}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "d_model": 32}
    widths = {"encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64}
    ends = dict.fromkeys(("eos_token_id", "bos_token_id", "decoder_start_token_id"), EOS)
    made, fields = {
        "llama": (LlamaConfig, plain),
        "qwen2": (Qwen2Config, {**plain, "num_key_value_heads": 2}),
        "gpt2": (
            GPT2Config,
            {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
        ),
        "opt": (OPTConfig, {**opt, "ffn_dim": 48, "word_embed_proj_dim": 32}),
        "bert": (BertConfig, plain),
        "roberta": (RobertaConfig, plain),
        "convbert": (ConvBertConfig, {**plain, "embedding_size": 32, "conv_kernel_size": 3}),
        "xlnet": (
            XLNetConfig,
            {"vocab_size": VOCAB, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48},
        ),
        "bart": (BartConfig, {"vocab_size": VOCAB, **heads, **sizes, **widths, **ends}),
    }[kind]
    return made(**{**fields, "num_labels": 1, **more})


def made(kind, path, tokens=None, **more):
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config(kind, **more))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(path)
    (tokens or tokenizer()).save_pretrained(path)
    return path


def encoded(classifier, texts, end=False):
    more = [EOS] if end else []
    most = classifier.window - len(more)
    rows = [classifier.tokenizer(t, truncation=True, max_length=most) for t in texts]
    ids = [list(row["input_ids"]) + more for row in rows]
    return [{"input_ids": i, "attention_mask": [1] * len(i)} for i in ids]


def alone(path, rows):
    """The logits of each row by transformers itself, one at a time and never padded."""
    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    with torch.inference_mode():
        return torch.cat([model(input_ids=torch.tensor([row["input_ids"]])).logits for row in rows])


PADS = {"none": None, "minus one": -1, "beyond": VOCAB + 3, "zero": 0, "end": EOS}


DECODERS = [
    (kind, pad)
    for kind in ("llama", "qwen2", "gpt2")
    for pad in PADS
    if (kind, pad) not in (("llama", "beyond"), ("qwen2", "beyond"))  # see below
]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("kind", "pad"), DECODERS)
def test_a_decoder_scores_the_end_of_each_text(kind, pad, side, tmp_path):
    """Whatever its padding token, its tokenizer's side, and with texts that end in that token."""
    path = made(kind, tmp_path, tokenizer(padding_side=side), pad_token_id=PADS[pad])
    classifier = classify.load(path)
    for end in (False, True):
        rows = [row for row in encoded(classifier, TEXTS, end) if row["input_ids"]]
        expected = alone(path, rows)[:, 0]
        torch.testing.assert_close(classifier.score(rows), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(classifier.score(rows, 3), expected, atol=1e-5, rtol=1e-5)
    assert classifier.model.config.pad_token_id == PADS[pad]


def test_a_padding_token_that_transformers_cannot_have_is_one_line(tmp_path):
    path = made("llama", tmp_path)
    content = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**content, "pad_token_id": VOCAB + 3}))
    with pytest.raises(Unusable, match="fit") as refused:
        classify.load(path)
    assert "\n" not in str(refused.value)


def test_the_end_would_be_missed(tmp_path):
    """The control: transformers' own batch with a padding token that is not the configuration's."""
    path = made("llama", tmp_path, pad_token_id=-1)
    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    rows = encoded(classify.load(path), TEXTS[:2])
    tokens = AutoTokenizer.from_pretrained(path)
    tokens.pad_token = tokens.eos_token
    with torch.inference_mode():
        batch = model(**tokens.pad(rows, return_tensors="pt")).logits
    assert not torch.allclose(batch, alone(path, rows), atol=1e-3)


@pytest.mark.parametrize("kind", ["bert", "roberta", "opt", "convbert", "xlnet", "bart"])
def test_the_batch_does_not_matter(kind, tmp_path):
    tokens = tokenizer()
    if kind == "bart":
        end = tokens.eos_token
        tokens.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"$A {end}", special_tokens=[(end, EOS)]
        )
    path = made(kind, tmp_path, tokens)
    classifier = classify.load(path)
    rows = [row for row in encoded(classifier, TEXTS) if row["input_ids"]]
    if kind == "bart":
        rows[0]["input_ids"][2] = EOS  # as many ends in each text, its batch would have to have
    expected = alone(path, rows)[:, 0]
    torch.testing.assert_close(classifier.score(rows), expected, atol=1e-5, rtol=1e-5)
    back = classifier.score(rows[::-1], 2).flip(0)
    torch.testing.assert_close(back, expected, atol=1e-5, rtol=1e-5)
    assert classifier.padding_is_safe == (kind not in ("convbert", "xlnet"))
    if kind == "xlnet":  # the control: in mixed company it is another number
        classifier.padding_is_safe = True
        assert not torch.allclose(classifier.score(rows), expected, atol=1e-3)


def test_an_empty_text_has_a_score(tmp_path):
    classifier = classify.load(made("llama", tmp_path))
    scores = classifier.score([{"input_ids": []}, {"input_ids": [5, 6]}])
    assert torch.isfinite(scores).all()


def test_no_attention_is_planned_for_each_new_shape(tmp_path):
    """See test_backbone."""
    classifier, allowed = classify.load(made("llama", tmp_path)), []
    classifier.model.register_forward_pre_hook(
        lambda *_: allowed.append(torch.backends.cuda.cudnn_sdp_enabled())
    )
    classifier.score([{"input_ids": [5, 6]}])
    assert allowed == [False]


def test_tokens_of_every_id_leave_none_to_fill_with(tmp_path):
    path = made("gpt2", tmp_path, pad_token_id=None)
    classifier = classify.load(path)
    rows = [{"input_ids": ids} for ids in torch.arange(VOCAB).split(60)]
    rows = [{"input_ids": row["input_ids"].tolist()} for row in rows]
    expected = alone(path, rows)[:, 0]
    torch.testing.assert_close(classifier.score(rows), expected, atol=1e-5, rtol=1e-5)


LABELS = {"id2label": {0: "calm", 1: "neutral", 2: "angry"}, "num_labels": 3}


@pytest.mark.parametrize(
    ("problem", "score"),
    [
        (None, lambda logits: logits.log_softmax(-1)),
        ("single_label_classification", lambda logits: logits.log_softmax(-1)),
        ("multi_label_classification", lambda logits: logits.sigmoid().log()),
        ("regression", lambda logits: logits),
    ],
)
def test_a_label_is_read_as_the_classifier_was_trained(problem, score, tmp_path):
    path = made("bert", tmp_path, **LABELS, problem_type=problem)
    for label, number in (("angry", 2), ("0", 0)):
        classifier = classify.load(path, label)
        rows = encoded(classifier, TEXTS[:3])
        expected = score(alone(path, rows))[:, number]
        torch.testing.assert_close(classifier.score(rows), expected, atol=1e-5, rtol=1e-5)
    reward = rewards.load(f"classifier:{path},label=angry,form=pair")
    [result] = rewards.label(reward, [{"prompt": "The", "completion": "end"}])
    [row] = [reward.tokenizer("The", "end")]
    assert result == pytest.approx(float(score(alone(path, [row]))[0, 2]), abs=1e-5)


@pytest.mark.parametrize(
    ("labels", "label", "why"),
    [
        (LABELS, None, "3 labels, calm, neutral, angry"),
        (LABELS, "cross", "3 labels"),
        (LABELS, "3", "3 labels"),
        (LABELS, "-1", "3 labels"),
        ({"id2label": {0: "good", 1: "good"}, "num_labels": 2}, "good", "2 labels"),
        ({"num_labels": 1}, "LABEL_0", "leave out label="),
        ({"num_labels": 1}, "0", "leave out label="),
    ],
)
def test_a_label_that_is_not_clear_is_refused(labels, label, why, tmp_path):
    path = made("bert", tmp_path, **labels)
    with pytest.raises(Unusable, match=why) as refused:
        classify.load(path, label)
    assert "\n" not in str(refused.value)


def test_a_name_goes_before_a_number(tmp_path):
    """Stars from one to three, as some classifiers of reviews have them."""
    stars = {"id2label": {0: "1", 1: "2", 2: "3"}, "num_labels": 3}
    path = made("bert", tmp_path, **stars)
    classifier = classify.load(path, "2")
    rows = encoded(classifier, TEXTS[:2])
    expected = alone(path, rows).log_softmax(-1)[:, 1]
    torch.testing.assert_close(classifier.score(rows), expected, atol=1e-5, rtol=1e-5)


def test_a_roberta_of_514_positions_reads_512(tmp_path):
    path = made("roberta", tmp_path, max_position_embeddings=514, pad_token_id=1)
    long = tokenizer()
    long.model_max_length = 10**30  # as some of them say
    long.chat_template = None
    long.save_pretrained(path)
    classifier = classify.load(path)
    assert classifier.window == 512
    reward = rewards.load(f"classifier:{path}")
    record = {"prompt": "The room was", "completion": "lovely and bad. " * 400}
    assert rewards.label(reward, [record, {**record, "completion": "Bad."}])
    with pytest.raises(
        (IndexError, RuntimeError)
    ):  # the control: one token more is beyond its positions
        alone(path, [{"input_ids": [5] * 513}])
