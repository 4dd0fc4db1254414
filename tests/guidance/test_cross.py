"""Scorers with a tokenizer of their own: every step equals scoring the text anew."""

import random

import numpy as np
import pytest
import torch
from transformers import AutoModelForTokenClassification, LlamaConfig

import tokenizers_made
from networks import configs
from trimtab.config import GuidanceConfig
from trimtab.errors import ScorerLoadError
from trimtab.loading import load_scorers
from trimtab.scorers import HeadScorer
from trimtab.scoring.attention import NAME as PREFIX_ATTENTION
from trimtab.scoring.backbone import Backbone
from trimtab.scoring.cross import CrossBackbone
from trimtab.scoring.retokenise import Retokeniser
from trimtab.scoring.text import Prompt, Reader
from trimtab.testing import check_scorer
from trimtab_models.checkpoint import ScorerInfo, save

STREAMS = 2000
WINDOW = 512


@pytest.fixture(scope="module")
def base():
    return tokenizers_made.base()


@pytest.fixture(scope="module")
def tokenizers():
    return {name: make() for name, make in tokenizers_made.TOKENIZERS.items()}


def network(tokenizer, seed=0):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=WINDOW,
        num_labels=1,
    )
    return AutoModelForTokenClassification.from_config(config).eval()


def cross(base, tokenizer, window=WINDOW, render=None):
    model = network(tokenizer)
    model.set_attn_implementation(PREFIX_ATTENTION)
    backbone = Backbone(model, max_length=WINDOW, pool_bytes=2**22, max_candidates=32)
    tokens = Retokeniser(tokenizer, rendered=render is not None)
    return HeadScorer(ScorerInfo(), CrossBackbone(backbone, Reader(base, render), tokens, window))


def anew(model, ids):
    """The score of a tokenised text, by the whole network."""
    with torch.inference_mode():
        return float(model(torch.from_numpy(ids)[None]).logits[0, -1, 0])


def text_of(base, ids):
    return base.decode(ids.tolist(), skip_special_tokens=True).rstrip("\ufffd")


@pytest.mark.slow
@pytest.mark.parametrize("name", tokenizers_made.TOKENIZERS)
def test_windows_read_what_the_whole_text_would(name, base, tokenizers):
    """A fifth of 2,000 streams for each tokenizer, a step for each token, three candidates."""
    tokens, reader = Retokeniser(tokenizers[name]), Reader(base)
    assert tokens.windowed == (name != "byte fallback")
    draw = random.Random(name)
    for s in range(STREAMS // len(tokenizers_made.TOKENIZERS)):
        ids = np.array(tokenizers_made.stream(draw, base, 12))
        prompt = draw.randrange(len(ids))
        for at in range(prompt, len(ids)):
            others = [draw.randrange(len(base)) for _ in range(2)]
            [row] = reader.read([s], [ids[:at]], [np.array([ids[at], *others])], [Prompt(prompt)])
            whole = [row.prompt + answer for answer in row.answers]
            result = tokens.sequences(s, whole)
            for text, sequence in zip(whole, result, strict=True):
                np.testing.assert_array_equal(sequence, tokens.reference(text))


def test_a_window_that_ends_anywhere_else_is_found_out(tokenizers, monkeypatch):
    """The control: with seams at any character, some text falls into other tokens."""
    tokens = Retokeniser(tokenizers["byte level"])
    monkeypatch.setattr("trimtab.scoring.retokenise._last_seam", lambda text, start: len(text) - 1)
    assert any(
        not np.array_equal(tokens.sequences(0, [text])[0], tokens.reference(text))
        for text in ["the", "the phone", "the phone is", "the phone is very"]
    )


@pytest.mark.parametrize("name", ["byte level", "unigram", "byte fallback"])
def test_scores_are_those_of_the_text_read_anew(name, base, tokenizers):
    scorer, plain = cross(base, tokenizers[name]), network(tokenizers[name])
    tokens = scorer.backbone.tokens
    draw = random.Random(2)
    streams = [np.array(tokenizers_made.stream(draw, base, 30)) for _ in range(4)]
    for at in range(3, min(map(len, streams))):
        candidates = [
            np.array([ids[at], *(draw.randrange(len(base)) for _ in range(draw.randrange(4)))])
            for ids in streams
        ]
        prefixes = [ids[:at] for ids in streams]
        result = scorer.score([0, 1, 2, 3], prefixes, candidates, [1.0] * 4, [Prompt(2)] * 4)
        expected = [
            anew(plain, tokens.reference(text_of(base, np.append(prefix, token))))
            for prefix, group in zip(prefixes, candidates, strict=True)
            for token in group
        ]
        torch.testing.assert_close(result, torch.tensor(expected), atol=1e-5, rtol=1e-5)


def test_a_step_reads_few_tokens(base, tokenizers):
    """At 256 tokens and more of prefix, at most a fifth of reading prefix and candidates anew."""
    tokenizer = tokenizers["byte level"]
    scorer, draw = cross(base, tokenizer), random.Random(0)
    text = " ".join(tokenizers_made.world.review("phone", draw) for _ in range(20))
    ids = np.array(base(text, add_special_tokens=False)["input_ids"])
    spent = anew_ = 0
    for at in range(200, 280):
        candidates = np.array([ids[at], *(draw.randrange(len(base)) for _ in range(9))])
        before = scorer.tokens_forwarded
        scorer.score([0], [ids[:at]], [candidates], [1.0], [Prompt(10)])
        length = len(scorer.backbone.tokens.reference(text_of(base, ids[:at])))
        if length >= 256:
            spent += scorer.tokens_forwarded - before
            anew_ += length
    assert 0 < spent <= anew_ / 5


def test_half_a_character_is_held_back(base, tokenizers):
    scorer = cross(base, tokenizers["byte level"])
    cat = base("a 🐈", add_special_tokens=False)["input_ids"]
    assert len(cat) > 3
    prefix = np.array(cat[:-2])
    score = scorer.score([0], [prefix], [np.array(cat[-2:-1])], [1.0], [Prompt(1)])
    bare = scorer.backbone.tokens.reference("a ")
    assert float(score[0]) == pytest.approx(anew(network(tokenizers["byte level"]), bare), abs=1e-5)
    assert "\ufffd" in base.decode(cat[:-1])


def test_the_contract_of_scorers(base, tokenizers):
    for name in ("split by expression", "byte fallback"):
        check_scorer(cross(base, tokenizers[name]), vocab_size=len(base))


def test_a_text_beyond_the_window_loses_its_beginning(base, tokenizers):
    window, tokenizer = 40, tokenizers["byte level"]
    scorer, plain = cross(base, tokenizer, window), network(tokenizer)
    ids = np.array(base("the phone is very good and I like it " * 12)["input_ids"])
    lost = []
    for at in range(4, len(ids)):
        score = scorer.score([7], [ids[:at]], [ids[at : at + 1]], [1.0], [Prompt(2)])
        whole = scorer.backbone.tokens.reference(text_of(base, ids[: at + 1]))
        over = max(0, len(whole) - window)
        cut = -(-over // 10) * 10
        assert float(score[0]) == pytest.approx(anew(plain, whole[cut:]), abs=1e-5)
        lost.append(scorer.shortened(7))
        assert lost[-1] == over
    assert lost[0] == 0
    assert lost[-1] > 20


def test_a_conversation_goes_through_its_own_template(base, tokenizers):
    tokenizer = tokenizers["byte level"]

    def render(turns):
        return "".join(f"[{turn['role']}] {turn['content']}\n" for turn in turns) + "[answer] "

    scorer, plain = cross(base, tokenizer, render=render), network(tokenizer)
    turns = [{"role": "user", "content": "a phone"}, {"role": "assistant", "content": "ok"}]
    prompt = np.array(base("anything")["input_ids"])
    answer = np.array(base(" it is good", add_special_tokens=False)["input_ids"])
    prefix, last = np.append(prompt, answer[:-1]), answer[-1:]
    for conversation, expected in (
        (turns, turns),
        (None, [{"role": "user", "content": "anything"}]),
    ):
        score = scorer.score([0], [prefix], [last], [1.0], [Prompt(len(prompt), conversation)])
        text = render(expected) + " it is good"
        again = anew(plain, scorer.backbone.tokens.reference(text))
        assert float(score[0]) == pytest.approx(again, abs=1e-5)


def test_a_checkpoint_with_another_tokenizer_is_known_by_it(base, tokenizers, tmp_path):
    other = tokenizers["byte level"]
    save(network(other), other, ScorerInfo(), tmp_path / "other")
    save(network(base), base, ScorerInfo(), tmp_path / "same")
    paths = {name: {"path": str(tmp_path / name)} for name in ("other", "same")}
    config = GuidanceConfig.parse({"trimtab": {"scorers": paths}})
    options = {"max_length": 64, "vocab_size": len(base), "tokenizer": base}
    scorers = load_scorers(config, **options)
    assert isinstance(scorers["other"].backbone, CrossBackbone)
    assert isinstance(scorers["same"].backbone, Backbone)
    paths["other"]["family"] = "vocabulary"
    with pytest.raises(ScorerLoadError, match="its tokenizer is not the base's"):
        load_scorers(GuidanceConfig.parse({"trimtab": {"scorers": paths}}), **options)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "qwen2-sliding"])
def test_branches_are_what_re_forwarding_gives(family):
    config = configs()[family]
    config.num_labels = 1
    torch.manual_seed(0)
    model = AutoModelForTokenClassification.from_config(config).eval()
    plain = AutoModelForTokenClassification.from_config(configs()[family]).base_model.eval()
    plain.load_state_dict(model.base_model.state_dict())
    model.set_attn_implementation(PREFIX_ATTENTION)
    backbone = Backbone(model, max_length=100, pool_bytes=2**22, max_candidates=8)
    draw = np.random.default_rng(3)
    trunk = draw.integers(config.vocab_size, size=30)
    for step in range(6):
        trunks = [trunk[: 10 + 3 * step], trunk[: 5 + step], trunk[:0]]
        ends = [
            [draw.integers(config.vocab_size, size=draw.integers(1, 5)) for _ in range(n)]
            for n in (3, 1, 4)
        ]
        result = backbone.branches([0, 1, 2], trunks, ends)
        expected = []
        with torch.inference_mode():
            for t, group in zip(trunks, ends, strict=True):
                for end in group:
                    ids = torch.from_numpy(np.concatenate((t, end)))[None]
                    expected.append(plain(ids).last_hidden_state[0, -1])
        torch.testing.assert_close(result, torch.stack(expected), atol=1e-4, rtol=1e-4)
    kept = backbone.pool.size - 1 - backbone.pool.free_slots
    assert kept == len(set(np.concatenate([e.slots for e in backbone.pool.entries.values()])))
    assert all(key >= 0 for key in backbone.pool.entries)
