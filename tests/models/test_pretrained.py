"""Loading with transformers: no code runs, nothing asks on stdin; errors are one line of ours."""

import builtins
import io
import json
import os
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
    T5Config,
)

from trimtab.config import GuidanceConfig
from trimtab.errors import ScorerLoadError
from trimtab.loading import load_scorers
from trimtab_models import checkpoint, classify, demo, files, networks, peft, pretrained, rewards
from trimtab_models.files import Unusable
from trimtab_models.rewards import RewardError
from trimtab_models.training import initial
from trimtab_models.training.config import TrainConfig

pytestmark = pytest.mark.scorecard(letter="S")

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "max_position_embeddings": 64}


def tokenizer():
    return PreTrainedTokenizerFast.from_pretrained(demo.base())


VOCAB = len(tokenizer())
LLAMA = {"vocab_size": VOCAB, **SIZES, **HEADS}
KINDS = {
    "llama-lm": (AutoModelForCausalLM, lambda: LlamaConfig(**LLAMA)),
    "llama-tied": (AutoModelForCausalLM, lambda: LlamaConfig(**LLAMA, tie_word_embeddings=True)),
    "gpt2-lm": (
        AutoModelForCausalLM,
        lambda: GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    ),
    "opt-lm": (
        AutoModelForCausalLM,
        lambda: OPTConfig(
            vocab_size=VOCAB,
            hidden_size=32,
            ffn_dim=48,
            num_hidden_layers=1,
            **HEADS,
            word_embed_proj_dim=32,
        ),
    ),
    "llama-token": (AutoModelForTokenClassification, lambda: LlamaConfig(**LLAMA, num_labels=1)),
    "llama-sequence": (
        AutoModelForSequenceClassification,
        lambda: LlamaConfig(**LLAMA, num_labels=1, pad_token_id=0),
    ),
    "bert-sequence": (
        AutoModelForSequenceClassification,
        lambda: BertConfig(**LLAMA, num_labels=1),
    ),
}


def made(kind, path):
    """A checkpoint of a kind, with the demo's tokenizer."""
    auto, config = KINDS[kind]
    torch.manual_seed(0)
    auto.from_config(config()).save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path


def changed(path, change):
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    return path


def configured(path, **fields):
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **fields}))
    return path


def load(path, kind):
    return pretrained.network(KINDS[kind][0], path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_checkpoint_loads(kind, tmp_path):
    """Tied weights included: what is not in the file is not made up."""
    path = made(kind, tmp_path / "whole")
    ours, theirs = load(path, kind), KINDS[kind][0].from_pretrained(path)
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value)


@pytest.mark.parametrize("kind", KINDS)
def test_any_missing_weight_is_named(kind, tmp_path):
    path = made(kind, tmp_path / "whole")
    names = sorted(load_file(path / "model.safetensors"))
    for i, name in enumerate(names[:: max(1, len(names) // 8)]):
        broken = shutil.copytree(path, tmp_path / str(i))
        changed(broken, lambda tensors, name=name: tensors.pop(name))
        with pytest.raises(Unusable, match="lacks the weights") as refused:
            load(broken, kind)
        assert name.rpartition(".")[2] in str(refused.value)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", ["llama-token", "llama-sequence", "bert-sequence"])
def test_a_head_of_another_name_is_a_missing_head(kind, tmp_path):
    """Rewards of a made-up head are random numbers."""
    path = made(kind, tmp_path / "other")

    def rename(tensors):
        for name in [n for n in tensors if n.startswith(("score", "classifier"))]:
            tensors["v_head." + name] = tensors.pop(name)

    changed(path, rename)
    with pytest.raises(Unusable, match=r"lacks the weights (score|classifier)"):
        load(path, kind)
    if kind == "llama-token":
        return
    with pytest.raises(RewardError, match=r"lacks the weights (score|classifier)"):
        rewards.load(f"classifier:{path}")
    control = KINDS[kind][0].from_pretrained(path)  # transformers alone makes it up
    assert torch.isfinite(control(torch.tensor([[5, 6]])).logits).all()


@pytest.mark.parametrize(
    ("kind", "name", "harmless"),
    [
        ("llama-sequence", "lm_head.weight", True),
        ("llama-lm", "v_head.summary.weight", True),
        ("llama-lm", "model.layers.0.self_attn.rotary_emb.inv_freq", True),
        ("gpt2-lm", "transformer.h.0.attn.bias", True),
        ("gpt2-lm", "transformer.h.0.attn.masked_bias", True),
        ("bert-sequence", "bert.embeddings.position_ids", True),
        ("bert-sequence", "cls.predictions.bias", True),
        ("bert-sequence", "cls.seq_relationship.weight", True),
        ("llama-sequence", "score.bias", False),
        ("llama-lm", "model.layers.2.mlp.up_proj.weight", False),
        ("llama-lm", "model.layers.0.self_attn.q_proj.bias", False),
        ("llama-lm", "model.layers.0.self_attn.q_proj.lora_A.weight", False),
        ("llama-lm", "lm_head.bias", False),
        ("bert-sequence", "bert.encoder.layer.2.output.dense.weight", False),
    ],
)
def test_what_is_left_over_counts_only_within_the_network(kind, name, harmless, tmp_path):
    path = made(kind, tmp_path / "more")
    changed(path, lambda tensors: tensors.__setitem__(name, torch.ones(3)))
    if harmless:
        load(path, kind)
        return
    with pytest.raises(Unusable, match="holds the weights") as refused:
        load(path, kind)
    assert name in str(refused.value)


def test_a_pooler_may_be_left_over(tmp_path):
    auto, config = KINDS["bert-sequence"]
    auto.from_config(config()).save_pretrained(tmp_path / "bert")
    path = configured(tmp_path / "bert", architectures=["BertForTokenClassification"])
    changed(path, lambda tensors: tensors.__setitem__("bert.pooler.dense.weight", torch.ones(3)))
    assert pretrained.network(AutoModelForTokenClassification, path)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"hidden_size": 40, "head_dim": 8}, "do not fit"),
        ({"num_hidden_layers": 3}, "lacks the weights"),
        ({"num_hidden_layers": 1}, "holds the weights"),
        ({"hidden_size": "many"}, "does not fit"),
        ({"num_attention_heads": 0}, "fit"),
        ({"model_type": "nobody-knows"}, "model_type"),
        ({"model_type": None}, "model_type"),
        ({"model_type": ["llama"]}, "model_type"),
        ({"architectures": ["ArmoRMForRewards"]}, "never run"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantised"),
        ({"attn_implementation": "somebody/attention"}, "never run"),
        ({"trimtab": {"family": "grand", "mean": "high"}}, "family, mean"),
        ({"trimtab": [1]}, "invalid fields"),
    ],
)
def test_a_configuration_that_does_not_fit_is_one_line(fields, why, tmp_path):
    path = configured(made("llama-token", tmp_path / "odd"), **fields)
    with pytest.raises(Unusable, match=why) as refused:
        checkpoint.load(path)
    assert "\n" not in str(refused.value)
    assert "Error" not in str(refused.value).replace("Error).", "")  # the name alone, at the end
    assert "grand" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "why"),
    [(b"{", "not JSON"), (b"[1]", "no JSON object"), (b"[" * 10**5, "not JSON"), (b"\xff", "JSON")],
)
def test_damaged_files_are_one_line(content, why, tmp_path):
    path = made("llama-token", tmp_path / "odd")
    for name, read in (
        ("config.json", checkpoint.load),
        ("tokenizer_config.json", pretrained.tokenizer),
    ):
        broken = shutil.copytree(path, tmp_path / name)
        (broken / name).write_bytes(content)
        with pytest.raises(Unusable, match=why):
            read(broken)
    (path / "tokenizer.json").write_bytes(content)
    with pytest.raises(Unusable, match="tokenizer cannot be read"):
        pretrained.tokenizer(path)
    (path / "model.safetensors").write_bytes(content)
    with pytest.raises(Unusable, match="damaged"):
        checkpoint.load(path)


CODE = """
from pathlib import Path
Path({canary!r}).touch()
from transformers import PreTrainedTokenizerFast, LlamaForTokenClassification, LlamaConfig
class Mine(PreTrainedTokenizerFast): pass
class MyConfig(LlamaConfig): pass
class MyModel(LlamaForTokenClassification): pass
def generate(*args, **kwargs): pass
"""
ROUTES = {
    "tokenizer": ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": [None, "mine.Mine"]}}),
    "tokenizer by list": ("tokenizer_config.json", {"auto_map": ["mine.Mine", "mine.Mine"]}),
    "configuration": ("config.json", {"auto_map": {"AutoConfig": "mine.MyConfig"}}),
    "network": (
        "config.json",
        {
            "auto_map": {
                "AutoModelForTokenClassification": "mine.MyModel",
                "AutoModelForSequenceClassification": "mine.MyModel",
                "AutoModelForCausalLM": "mine.MyModel",
            }
        },
    ),
    "attention": ("config.json", {"_attn_implementation": "somebody/attention"}),
}


@pytest.fixture
def nobody_asks(monkeypatch):
    """Standard input says yes to everything, and must not be read."""

    def read_input(*_):
        raise AssertionError("something was read from standard input")

    answers = io.StringIO("y\n" * 9)
    monkeypatch.setattr(builtins, "input", read_input)
    monkeypatch.setattr(sys, "stdin", answers)
    yield
    assert answers.tell() == 0


def with_code(path, route, own_class):
    """The checkpoint with code of its own, which makes a file `canary` when it runs."""
    canary = path / "canary"
    (path / "mine.py").write_text(CODE.format(canary=str(canary)))
    (path / "custom_generate").mkdir()
    shutil.copy(path / "mine.py", path / "custom_generate" / "generate.py")
    name, fields = ROUTES[route]
    if own_class and name == "tokenizer_config.json":
        fields = {**fields, "tokenizer_class": "Mine"}
    elif own_class and route != "attention":
        fields = {**fields, "architectures": ["MyModel"], "model_type": "mine"}
    content = json.loads((path / name).read_text())
    (path / name).write_text(json.dumps({**content, **fields}))
    return canary


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("own_class", [True, False])
@pytest.mark.usefixtures("nobody_asks")
def test_no_code_of_a_checkpoint_runs_and_nothing_is_read_from_stdin(route, own_class, tmp_path):
    """By each way in; what names a class of its own is refused, what does not is transformers'."""
    token, sequence = made("llama-token", tmp_path / "t"), made("llama-sequence", tmp_path / "s")
    lm = made("llama-lm", tmp_path / "lm")
    canaries = [with_code(path, route, own_class) for path in (token, sequence, lm)]
    spec = {"scorers": {"v": {"path": str(token)}, "t": {"path": str(sequence), "family": "text"}}}
    config = GuidanceConfig.parse({"trimtab": spec})
    trained = {"objective": "td-lambda", "base": "demo", "data": "x", "out": tmp_path / "out"}

    def train():
        settings = TrainConfig(**{**trained, "base": str(lm)})
        networks.build("scalar", initial.base_path(settings))
        pretrained.tokenizer(initial.base_path(settings))

    def scorers():
        load_scorers(config, max_length=32, vocab_size=VOCAB, tokenizer=tokenizer())

    ways = {
        "scorers": scorers,
        "reward": lambda: rewards.load(f"classifier:{sequence}"),
        "training": train,
        "base": lambda: load_scorers(
            GuidanceConfig(), max_length=32, vocab_size=VOCAB, tokenizer=str(lm)
        ),
    }
    by_tokenizer = ROUTES[route][0] == "tokenizer_config.json"
    for name, way in ways.items():
        refused = (own_class or route == "attention") and (by_tokenizer or name != "base")
        if not refused:
            way()
            continue
        with pytest.raises((ScorerLoadError, RewardError, Unusable)) as error:
            way()
        assert "never run" in str(error.value)
        assert "\n" not in str(error.value)
    assert not [canary for canary in canaries if canary.exists()]


def test_the_code_would_be_noticed(tmp_path):
    """The control: with trust_remote_code, transformers runs it."""
    path = made("llama-token", tmp_path / "t")
    canary = with_code(path, "tokenizer", own_class=True)
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(path, trust_remote_code=True)
    assert canary.exists()


def lora(path, **fields):
    """An adapter of a language model beside it, with changes to its configuration."""
    from peft import LoraConfig, get_peft_model

    base = made("llama-lm", path / "base")
    network = AutoModelForTokenClassification.from_pretrained(base, num_labels=1)
    adapted = get_peft_model(
        network, LoraConfig(task_type="TOKEN_CLS", r=2, target_modules=["q_proj", "v_proj"])
    )
    adapted.save_pretrained(path / "adapter")
    content = json.loads((path / "adapter" / "adapter_config.json").read_text())
    (path / "adapter" / "adapter_config.json").write_text(json.dumps({**content, **fields}))
    return path / "adapter"


def rewritten(path, change):
    tensors = load_file(path / peft.WEIGHTS)
    change(tensors)
    save_file(tensors, path / peft.WEIGHTS, {"format": "pt"})


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda t: t.pop("base_model.model.score.weight"), "lacks the weights score.weight"),
        (lambda t: t.pop(sorted(t)[0]), "lacks the weights"),
        (lambda t: t.update({"base_model.model.model.other.weight": torch.ones(2)}), "not use"),
        (lambda t: t.update({sorted(t)[0]: torch.ones(2, 3)}), "do not fit"),
    ],
    ids=["head", "rank", "more", "shape"],
)
def test_an_adapter_whose_weights_do_not_match_is_refused(change, why, tmp_path):
    path = lora(tmp_path)
    assert checkpoint.load(path)
    rewritten(path, change)
    with pytest.raises(Unusable, match=why) as refused:
        checkpoint.load(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"task_type": None}, "task_type"),
        ({"task_type": "SEQ_2_SEQ_LM"}, "task_type"),
        ({"peft_type": "XLORA"}, "cannot be merged"),
        ({"peft_type": "NONE"}, "cannot be merged"),
        ({"base_model_name_or_path": None}, "does not name its base"),
        ({"base_model_name_or_path": "/nowhere/at/all"}, "neither a checkpoint"),
        ({"megatron_config": {}, "megatron_core": "mine.core"}, "never done"),
        ({"r": "two"}, "do not fit|does not fit"),
    ],
)
def test_an_adapter_of_another_kind_is_refused(fields, why, tmp_path):
    with pytest.raises((Unusable, FileNotFoundError), match=why) as refused:
        checkpoint.load(lora(tmp_path, **fields))
    assert "\n" not in str(refused.value)


@pytest.mark.usefixtures("nobody_asks")
def test_the_base_of_an_adapter_runs_no_code_either(tmp_path):
    path = lora(tmp_path)
    canary = with_code(tmp_path / "base", "network", own_class=True)
    with pytest.raises(Unusable, match="never run"):
        checkpoint.load(path)
    assert not canary.exists()
    shutil.rmtree(tmp_path / "base")
    shutil.copytree(path, tmp_path / "base")
    with pytest.raises((Unusable, FileNotFoundError), match=r"config\.json"):
        checkpoint.load(path)


@pytest.mark.parametrize("suffix", [".bin", ".pt"])
def test_pickles_stay_closed(suffix, tmp_path):
    path = made("llama-sequence", tmp_path / "pickled")
    (path / "model.safetensors").rename(path / f"pytorch_model{suffix}")
    for way in (checkpoint.load, classify.load, lambda path: load(path, "llama-sequence")):
        with pytest.raises(FileNotFoundError, match=f"pytorch_model{suffix} may be pickled"):
            way(path)


def test_files_are_looked_at_before_they_are_opened(tmp_path):
    path = made("llama-sequence", tmp_path / "sound")
    os.mkfifo(path / "notes.fifo")  # nobody opens it
    assert checkpoint.load(path)
    for i, name in enumerate(("config.json", "tokenizer.json", "model.safetensors", "vocab.txt")):
        fifo = shutil.copytree(path, tmp_path / str(i), ignore=shutil.ignore_patterns("*.fifo"))
        (fifo / name).unlink(missing_ok=True)
        os.mkfifo(fifo / name)
        for way in (checkpoint.load, classify.load, pretrained.tokenizer):
            with pytest.raises(Unusable, match="FIFO"):
                way(fifo)
        device = shutil.copytree(path, tmp_path / f"d{i}", ignore=shutil.ignore_patterns("*.fifo"))
        (device / name).unlink(missing_ok=True)
        (device / name).symlink_to("/dev/zero")
        with pytest.raises(Unusable, match="device"):
            checkpoint.load(device)
        with pytest.raises(RewardError, match="device"):
            rewards.load(f"classifier:{device}")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json"])
def test_a_huge_file_is_not_read(name, tmp_path):
    path = made("llama-sequence", tmp_path / "huge")
    with (path / name).open("ab") as file:
        file.truncate(300 * files.MIB)
    with pytest.raises(Unusable, match="300 MiB"):
        checkpoint.load(path)
    with pytest.raises(Unusable, match="300 MiB"):
        networks.build("scalar", path)


def test_an_index_names_files_of_its_directory_alone(tmp_path):
    path = made("llama-token", tmp_path / "sharded")
    (path / "model.safetensors").rename(path / "model-00001-of-00001.safetensors")
    names = load_file(path / "model-00001-of-00001.safetensors")
    for shard, sound in (("model-00001-of-00001.safetensors", True), ("../x.safetensors", False)):
        index = {"metadata": {}, "weight_map": dict.fromkeys(names, shard)}
        (path / files.INDEX).write_text(json.dumps(index))
        if sound:
            assert checkpoint.load(path)
            continue
        with pytest.raises(Unusable, match="names files that are not there"):
            checkpoint.load(path)


def test_training_begins_with_a_causal_network(tmp_path):
    config = BertConfig(**LLAMA, num_labels=1)
    AutoModelForTokenClassification.from_config(config).save_pretrained(tmp_path / "bert")
    with pytest.raises(Unusable, match="both directions"):
        networks.build("scalar", tmp_path / "bert")
    lm = made("llama-lm", tmp_path / "lm")
    assert networks.build("scalar", lm)  # its head is new
    changed(lm, lambda tensors: tensors.pop("model.norm.weight"))
    for head in ("scalar", "vocabulary", "language", "distributions"):
        with pytest.raises(Unusable, match=r"lacks the weights model\.norm\.weight"):
            networks.build(head, lm, bins=3)
    token = made("llama-token", tmp_path / "token")
    with pytest.raises(Unusable, match="is a token classifier"):
        networks.build("language", token)
    with pytest.raises(Unusable, match="do not fit"):
        networks.build("distribution", token, bins=7)
    changed(token, lambda tensors: tensors.pop("score.weight"))
    with pytest.raises(Unusable, match="lacks the weights score"):
        networks.build("scalar", token)


def test_training_begins_with_a_network_of_the_bases_vocabulary(tmp_path):
    small = LlamaConfig(**{**LLAMA, "vocab_size": VOCAB - 1})
    AutoModelForCausalLM.from_config(small).save_pretrained(tmp_path / "small")
    made("llama-lm", tmp_path / "same")
    settings = {"objective": "td-lambda", "base": "demo", "data": "x", "out": tmp_path / "out"}
    initial.refuse_small(TrainConfig(**settings, scorer=str(tmp_path / "same")), tokenizer())
    with pytest.raises(ValueError, match="choose a network"):
        initial.refuse_small(TrainConfig(**settings, scorer=str(tmp_path / "small")), tokenizer())


def test_an_encoder_decoder_is_no_language_model(tmp_path):
    from transformers import AutoModelForSeq2SeqLM

    config = T5Config(vocab_size=VOCAB, d_model=32, d_ff=48, num_layers=1, num_heads=4, d_kv=8)
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(tmp_path / "t5")
    with pytest.raises(Unusable, match="lacks an output over the vocabulary"):
        networks.build("language", tmp_path / "t5")
