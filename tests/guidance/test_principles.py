"""Principles in words: their fields, their tokens, and what they do to logits."""

import json

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LogitsProcessorList

from trimtab.adapters.other_rows import OtherRows
from trimtab.adapters.transformers import TransformersGuidance
from trimtab.contrast import difference
from trimtab.errors import InvalidGuidance
from trimtab.guide import Guide
from trimtab.params import GuidanceParams
from trimtab.principles import MAX_PRINCIPLES, MAX_TEXT, insertion
from trimtab.rows import Row
from trimtab.scorers import FunctionScorer
from trimtab.search import BestOfN
from trimtab.xargs import from_xargs, to_xargs

VOCAB = 40
KIND = {"text": "Be kind.", "weight": 1.5}


def odd(ids):
    return float(ids[-1] % 2)


# --- fields --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"principles": "Be kind."},
        {"principles": ["Be kind."]},
        {"principles": [{"text": "Be kind."}]},
        {"principles": [{"text": "", "weight": 1}]},
        {"principles": [{"text": "x" * (MAX_TEXT + 1), "weight": 1}]},
        {"principles": [{"text": "x", "weight": "1"}]},
        {"principles": [{"text": "x", "weight": True}]},
        {"principles": [{"text": "x", "weight": 1e400}]},
        {"principles": [{"text": "x", "weight": 1001}]},
        {"principles": [{"text": 1, "weight": 1}]},
        {"principles": [{**KIND, "more": 1}]},
        {"principles": [KIND] * (MAX_PRINCIPLES + 1)},
        {"principles": [KIND] * MAX_PRINCIPLES, "negative_prompt": "Be rude."},
        {"principles": {"text": "x", "weight": 1}},
        {"negative_prompt": ""},
        {"negative_prompt": 3},
        {"negative_prompt": "x" * (MAX_TEXT + 1)},
        {"negative_prompt": "\ud800"},
        {"principles": [{"text": "\ud800", "weight": 1}]},
    ],
)
def test_hostile_fields_are_refused_without_their_values(fields):
    with pytest.raises(InvalidGuidance) as refusal:
        GuidanceParams.parse(fields)
    assert "Be kind" not in refusal.value.message


@pytest.mark.parametrize("flat", ["", "[", "{}", '"x"', "[" * 5000, '[{"text": "x"}]'])
def test_a_hostile_flat_form_is_refused(flat):
    with pytest.raises(InvalidGuidance):
        from_xargs({"trimtab_principles": flat})


def test_the_forms_are_equal():
    fields = {"principles": [KIND, {"text": "ö\n'\"", "weight": -2}], "negative_prompt": "Go away."}
    params = GuidanceParams.parse(fields).resolve(["a", "b"])
    assert params.scorers == {}, "principles alone: no scorer steers"
    flat = to_xargs(params)
    assert all(isinstance(value, str | int | float) for value in flat.values())
    again = from_xargs(json.loads(json.dumps(flat))).resolve(["a", "b"])
    assert again == params
    assert {name: one.weight for name, one in again.said.items()} == {
        "principle 1": 1.5,
        "principle 2": -2.0,
        "principle 3": -1.0,
    }
    assert GuidanceParams.parse({**fields, "scorers": {"a": 1}}).resolve(["a"]).scorers == {"a": 1}


def test_a_search_refuses_principles():
    with pytest.raises(InvalidGuidance, match="search"):
        BestOfN().check(GuidanceParams.parse({"negative_prompt": "x"}), 1.0)


# --- tokens --------------------------------------------------------------------------------------


class Tokenizer:
    """A token is a character, but for the names of special ones, which are capital letters."""

    def __init__(self, render=None, bos=None):
        self.chat_template = render
        self.bos_token_id = None if bos is None else ord(bos)

    def encode(self, text, add_special_tokens=True):
        assert not add_special_tokens, "special tokens are in the prompt already"
        return [ord(character) for character in text]

    def apply_chat_template(self, turns, tokenize):
        assert not tokenize
        return self.chat_template(turns)


def by_role(turns):
    return "".join({"system": "S", "user": "U"}.get(t["role"], "A") + t["content"] for t in turns)


def chatml(turns):
    return "".join(f"I{t['role']}|{t['content']}" for t in turns)


def llama(turns):
    return "B" + "".join(f"H{t['role']}|{t['content']}" for t in turns)


def no_system(turns):
    if turns[0]["role"] == "system":
        raise ValueError("System role not supported")
    return "B" + "".join(f"I{t['content']}" for t in turns)


@pytest.mark.parametrize(
    ("tokenizer", "prompt", "expected"),
    [
        (Tokenizer(), "the", "be\n\nthe"),
        (Tokenizer(bos="B"), "Bthe", "Bbe\n\nthe"),
        (Tokenizer(bos="B"), "the", "be\n\nthe"),
        (Tokenizer(by_role), "UhiA", "SbeUhiA"),
        (Tokenizer(by_role), "SsysUhiA", "SbeSsysUhiA"),
        (Tokenizer(by_role), "the", "be\n\nthe"),
        (Tokenizer(chatml), "Iuser|hi", "Isystem|beIuser|hi"),
        (Tokenizer(chatml, bos="I"), "Iuser|hi", "Isystem|beIuser|hi"),
        (Tokenizer(llama, bos="B"), "BHuser|hi", "BHsystem|beHuser|hi"),
        (Tokenizer(llama, bos="B"), "Bthe", "Bbe\n\nthe"),
        (Tokenizer(no_system, bos="B"), "BIhi", "Bbe\n\nIhi"),
    ],
)
def test_where_a_principle_goes(tokenizer, prompt, expected):
    ids = [ord(character) for character in prompt]
    at, inserted = insertion(tokenizer, "be", ids)
    assert "".join(map(chr, [*ids[:at], *inserted, *ids[at:]])) == expected


# --- logits --------------------------------------------------------------------------------------


def stepped(params, logits, beside, names=()):
    """Logits after a step of row 0, its row, and its record; `beside`: rows of its principles."""
    guide = Guide({name: FunctionScorer(odd) for name in names})
    row = Row(params.resolve(names), 2, record_key="r", prefix=np.array([3, 4]), beside=beside)
    fused = logits.clone()
    guide.step(fused, [(0, row)])
    [record] = guide.records.report("r", [3, 4], [[5]], True)
    return fused, row, record


@pytest.mark.parametrize("tail", ["mean", "truncate"])
def test_the_formula(tail):
    logits = 2 * torch.randn(4, VOCAB)
    params = GuidanceParams.parse(
        {
            "scorers": {"odd": 0.5},
            "principles": [KIND, {"text": "zero", "weight": 0}, {"text": "Be rude.", "weight": -2}],
            "beta": 0.8,
            "k": 12,
            "mass": 1.0,
            "tail": tail,
            "trace": True,
        }
    )
    fused, _, record = stepped(params, logits, (2, 3), ["odd"])
    own, kind, rude = (logits[i].double().log_softmax(-1) for i in (0, 2, 3))
    best = own.topk(12).indices.tolist()
    bonus = {v: 0.8 * (0.5 * (v % 2) + 1.5 * (kind - own)[v] - 2 * (rude - own)[v]) for v in best}
    mean = sum(bonus.values()) / 12
    rest = mean if tail == "mean" else -torch.inf
    expected = torch.stack([logits[0, v] + bonus.get(v, rest) for v in range(VOCAB)]).float()
    torch.testing.assert_close(fused[0], expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(fused[1:], logits[1:])
    log_p = expected.double().log_softmax(-1)
    terms = torch.where(log_p > -torch.inf, log_p.exp() * (log_p - own), 0.0)
    assert record["kl"] == pytest.approx(float(terms.sum()), rel=1e-4)
    assert set(record["kl_parts"]) == {"odd", "principle 1", "principle 3"}
    assert sum(record["kl_parts"].values()) == pytest.approx(record["kl"] - record["kl_tail"])
    [step] = record["trace"]
    for name, after in (("principle 1", kind), ("principle 3", rude)):
        scores = torch.tensor(step["scores"][name], dtype=torch.float64)
        torch.testing.assert_close(scores, (after - own)[step["candidates"]], rtol=0, atol=1e-4)


def test_the_parts_of_one_kind_are_its_kl():
    logits = 2 * torch.randn(2, VOCAB)
    params = GuidanceParams.parse({"principles": [KIND], "beta": 1.0, "tail": "mean"})
    _, _, record = stepped(params, logits, (1,))
    assert record["kl_parts"] == {"principle 1": pytest.approx(record["kl"])}


def test_weight_one_is_the_base_with_the_principle():
    logits = 2 * torch.randn(2, VOCAB)
    params = GuidanceParams(principles=[{"text": "x", "weight": 1}], k=VOCAB, mass=1.0)
    fused, _, _ = stepped(params, logits, (1,))
    torch.testing.assert_close(fused[0].softmax(-1), logits[1].softmax(-1))
    whole, _, _ = stepped(params.model_copy(update={"k": "all"}), logits, (1,))
    torch.testing.assert_close(whole[0].softmax(-1), logits[1].softmax(-1))


def test_a_negative_prompt_is_classifier_free_guidance():
    logits, gamma = 2 * torch.randn(2, VOCAB), 2.5
    params = GuidanceParams(negative_prompt="x", beta=gamma - 1, k=VOCAB, mass=1.0)
    fused, _, _ = stepped(params, logits, (1,))
    expected = gamma * logits[0].log_softmax(-1) - (gamma - 1) * logits[1].log_softmax(-1)
    torch.testing.assert_close(fused[0].softmax(-1), expected.softmax(-1))


@pytest.mark.parametrize("fields", [{"beta": 0.0}, {"weight": 0}])
def test_nothing_is_the_base_bit_for_bit(fields):
    logits = torch.randn(2, VOCAB)
    principle = {"text": "x", "weight": fields.get("weight", 3)}
    params = GuidanceParams.parse({"principles": [principle], "beta": fields.get("beta", 2.0)})
    fused, row, _ = stepped(params, logits, (1,) if params.said else ())
    assert row.fault is None
    assert torch.equal(fused, logits)


def test_banned_tokens_stay_banned_and_leave_both_rows():
    own, other = torch.randn(2, VOCAB)
    own[:10] = -torch.inf
    expected = other[10:].log_softmax(-1) - own[10:].log_softmax(-1)
    result = difference(own[None], other[None])[0]
    torch.testing.assert_close(result[10:], expected)
    assert (result[:10] == 0).all()
    params = GuidanceParams(principles=[KIND], k="all")
    fused, row, _ = stepped(params, torch.stack((own, other)), (1,))
    assert row.fault is None
    assert (fused[0, :10] == -torch.inf).all()
    assert fused[0, 10:].isfinite().all()


def test_a_budget_counts_principles():
    logits = torch.randn(2, VOCAB)
    params = GuidanceParams.parse({"principles": [KIND], "kl_budget": 0.5})
    guide = Guide({})
    row = Row(params.resolve([]), 2, record_key="r", prefix=np.array([3, 4]), max_tokens=1)
    row.beside = (1,)
    guide.step(logits, [(0, row)])
    [record] = guide.records.report("r", [3, 4], [[5]], True)
    assert record["kl"] == pytest.approx(0.5, rel=1e-3)
    assert sum(record["kl_parts"].values()) == pytest.approx(record["kl"])


@pytest.mark.parametrize("on_error", ["fail", "unguided"])
def test_a_row_without_its_other_row_fails_alone(on_error):
    logits = torch.randn(4, VOCAB)
    params = GuidanceParams(principles=[KIND], on_error=on_error).resolve([])
    lost = Row(params, 2, stop_token=7, prefix=np.array([3, 4]))
    well = Row(params, 2, stop_token=7, prefix=np.array([3, 4]), beside=(2,))
    fused = logits.clone()
    Guide({}).step(fused, [(0, lost), (1, well)])
    assert lost.fault.scorer == "principle 1"
    assert "no row" in lost.fault.message
    assert well.fault is None
    assert not torch.equal(fused[1], logits[1])
    if on_error == "unguided":
        assert torch.equal(fused[0], logits[0])
    else:
        assert fused[0].isfinite().nonzero().tolist() == [[7]]


# --- transformers --------------------------------------------------------------------------------


@torch.inference_mode()
def test_transformers_equal_two_plain_forwards():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = LlamaConfig(vocab_size=VOCAB, num_attention_heads=2, **sizes, eos_token_id=None)
    model = LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)

    class Words:
        chat_template = None

        def encode(self, text, add_special_tokens=True):
            return {"one\n\n": [5, 6, 7], "two\n\n": [8]}[text]

    principles = [{"text": "one", "weight": 1.0}, {"text": "two", "weight": -1.5}]
    params = GuidanceParams(principles=principles, beta=1.5, k=VOCAB, mass=1.0)
    guidance = TransformersGuidance(Guide({}), params, others=OtherRows(model, Words()))
    prompts = torch.tensor([[1, 2, 3], [9, 9, 4]])
    answers = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=6,
        do_sample=False,
        pad_token_id=0,
        logits_processor=LogitsProcessorList([guidance]),
    )

    def log_p(ids):
        return model(torch.tensor([ids]), use_cache=False).logits[0, -1].log_softmax(-1)

    for prompt, answer in zip(prompts.tolist(), answers.tolist(), strict=True):
        ids = list(prompt)
        for token in answer[3:]:
            own = log_p(ids)
            bonus = log_p([5, 6, 7, *ids]) - own - 1.5 * (log_p([8, *ids]) - own)
            assert token == int((own + 1.5 * bonus).argmax())
            ids.append(token)
    with pytest.raises(InvalidGuidance, match="model"):
        TransformersGuidance(Guide({}), params)
