"""Checkpoints: whole or absent, refused when damaged; plain transformers and PEFT ones serve."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from peft import AutoPeftModelForTokenClassification, LoraConfig, PromptTuningConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    GPT2Config,
    LlamaConfig,
    OPTConfig,
)

from trimtab.config import GuidanceConfig
from trimtab.loading import load_scorers
from trimtab.scorers import DistributionScorer, HeadScorer, VocabularyScorer
from trimtab.scoring.backbone import Backbone
from trimtab_models import manifest
from trimtab_models.checkpoint import ScorerInfo, load, read_info, save
from trimtab_models.networks import scalar_head

VOCAB, LENGTH = 61, 64
INFO = ScorerInfo(objective="td-lambda", base_model="org/base", mean=0.25, prefix_auc=0.8)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def llama(**more):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": LENGTH}
    return LlamaConfig(vocab_size=VOCAB, **sizes, **heads, **more)


def gpt2(**more):
    return GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=LENGTH, **more)


def opt(**more):
    sizes = {"hidden_size": 32, "ffn_dim": 48, "word_embed_proj_dim": 32}
    layers = {"num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": LENGTH}
    return OPTConfig(vocab_size=VOCAB, **sizes, **layers, **more)


def made(auto, config, seed=0):
    torch.manual_seed(seed)
    model = auto.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def ask(scorer, strength=1.0):
    """Scores of three candidates after one prefix, and the four sequences they make."""
    prefix, candidates = np.arange(3, 12), np.array([7, 20, 40])
    scores = scorer.score([0], [prefix], [candidates], [strength])
    return scores, [torch.tensor([[*prefix, c]]) for c in candidates]


def served(model):
    """In double precision, so that what differs is more than the order of some sums."""
    model = model.double()
    return Backbone(model, max_length=LENGTH - 8, pool_bytes=2**20, max_candidates=4)


def loaded(path, **options):
    from trimtab.scoring.attention import NAME as PREFIX_ATTENTION

    return load(path, attn_implementation=PREFIX_ATTENTION, **options)


def adapt(model, task, **options):
    """A LoRA adapter on a network, with weights that change its output."""
    names = {"llama": ["q_proj", "v_proj"], "gpt2": ["c_attn"], "opt": ["q_proj"]}
    targets = names[model.config.model_type]
    options["fan_in_fan_out"] = model.config.model_type == "gpt2"
    config = LoraConfig(task_type=task, r=4, target_modules=targets, **options)
    adapted = get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return adapted.eval()


@pytest.mark.parametrize("config", [llama, gpt2], ids=["llama", "gpt2"])
def test_a_token_classifier_serves_as_it_is(config, tmp_path):
    plain = made(AutoModelForTokenClassification, config(num_labels=1))
    plain.save_pretrained(tmp_path / "plain")
    model, info = loaded(tmp_path / "plain")
    assert info == ScorerInfo()
    scores, sequences = ask(HeadScorer(info, served(model)))
    with torch.inference_mode():
        expected = torch.cat([plain.double()(ids).logits[0, -1] for ids in sequences]).float()
    torch.testing.assert_close(scores, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("config", [llama, gpt2, opt], ids=["llama", "gpt2", "opt"])
def test_a_reward_model_serves_as_it_is(config, tmp_path):
    """A sequence classifier of transformers' own, at its last token."""
    plain = made(AutoModelForSequenceClassification, config(num_labels=1, pad_token_id=0))
    assert plain.score.bias is None
    plain.save_pretrained(tmp_path / "plain")
    model, info = loaded(tmp_path / "plain")
    scores, sequences = ask(HeadScorer(info, served(model)))
    with torch.inference_mode():
        expected = torch.cat([plain.double()(ids).logits[0] for ids in sequences]).float()
    torch.testing.assert_close(scores, expected, atol=1e-6, rtol=1e-6)


def test_a_distribution_on_a_sequence_classifier_serves(tmp_path):
    """OPT has no token classifier; its histogram is a sequence classifier's."""
    plain = scalar_head(opt(), bins=5)
    assert type(plain).__name__ == "OPTForSequenceClassification"
    info = ScorerInfo(family="distribution", support=(0.0, 2.0))
    model, info = loaded(save(plain, None, info, tmp_path / "out"))
    scores, sequences = ask(DistributionScorer(info, served(model)), strength=0.0)
    with torch.inference_mode():
        p = torch.cat([plain.double()(ids).logits for ids in sequences]).float().softmax(-1)
    torch.testing.assert_close(scores, p @ torch.linspace(0, 2, 5), atol=1e-6, rtol=1e-6)


def test_what_is_saved_here_loads_with_transformers(tmp_path):
    model = made(AutoModelForTokenClassification, llama(num_labels=1))
    path = save(model, None, INFO, tmp_path / "out")
    plain = AutoModelForTokenClassification.from_pretrained(path)
    ids = torch.arange(10)[None]
    with torch.inference_mode():
        assert torch.equal(plain(ids).logits, model(ids).logits)
    assert load(path)[1] == INFO == read_info(path)


@pytest.mark.parametrize("task", ["TOKEN_CLS", "SEQ_CLS"])
@pytest.mark.parametrize("config", [llama, gpt2], ids=["llama", "gpt2"])
@pytest.mark.parametrize("ours", [True, False], ids=["saved here", "saved by peft"])
def test_an_adapter_serves(task, config, ours, tmp_path):
    made(AutoModelForCausalLM, config(), seed=1).save_pretrained(tmp_path / "base")
    auto = {
        "TOKEN_CLS": AutoModelForTokenClassification,
        "SEQ_CLS": AutoModelForSequenceClassification,
    }[task]
    network = auto.from_pretrained(tmp_path / "base", num_labels=1)
    network.config.pad_token_id = 0
    adapted = adapt(network, task)
    if ours:
        save(adapted, None, INFO, tmp_path / "adapter")
    else:
        adapted.save_pretrained(tmp_path / "adapter")
    model, info = loaded(tmp_path / "adapter")
    assert info == (INFO if ours else ScorerInfo())
    scores, sequences = ask(HeadScorer(info, served(model)))
    with torch.inference_mode():
        expected = torch.cat([adapted(ids).logits.reshape(-1)[-1:] for ids in sequences])
    torch.testing.assert_close(scores, expected, atol=1e-6, rtol=1e-5)
    if task == "TOKEN_CLS":
        plain = AutoPeftModelForTokenClassification.from_pretrained(
            tmp_path / "adapter", num_labels=1
        )
        with torch.inference_mode():
            again = torch.cat([plain(ids).logits[0, -1] for ids in sequences])
        torch.testing.assert_close(again, expected, atol=1e-6, rtol=1e-6)


def test_an_adapter_of_a_vocabulary_serves_with_its_own_output(tmp_path):
    """Also where the base's output is tied to its input."""
    base = made(AutoModelForCausalLM, llama(tie_word_embeddings=True), seed=1)
    base.save_pretrained(tmp_path / "base")
    network = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    with pytest.warns(UserWarning, match="tie"):
        adapted = adapt(network, "CAUSAL_LM", modules_to_save=["lm_head"])
    torch.nn.init.normal_(adapted.base_model.model.lm_head.modules_to_save.default.weight, std=0.2)
    path = save(adapted, None, ScorerInfo(family="vocabulary"), tmp_path / "adapter")
    config = GuidanceConfig.parse({"trimtab": {"scorers": {"q": {"path": str(path)}}}})
    scorers = load_scorers(config, max_length=LENGTH - 8, vocab_size=VOCAB)
    assert isinstance(scorers["q"], VocabularyScorer)
    scores, sequences = ask(scorers["q"])
    with torch.inference_mode():
        expected = adapted(sequences[0][:, :-1]).logits[0, -1][[7, 20, 40]]
    torch.testing.assert_close(scores, expected, atol=1e-6, rtol=1e-5)


def test_an_adapter_may_stand_beside_its_base(tmp_path):
    made(AutoModelForCausalLM, llama(), seed=1).save_pretrained(tmp_path / "base")
    network = AutoModelForTokenClassification.from_pretrained(tmp_path / "base", num_labels=1)
    path = save(adapt(network, "TOKEN_CLS"), None, INFO, tmp_path / "adapter")
    (path / manifest.NAME).unlink()
    config = json.loads((path / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "../base"
    (path / "adapter_config.json").write_text(json.dumps(config))
    before, _ = load(path)
    (tmp_path / "elsewhere").mkdir()
    for name in ("base", "adapter"):
        (tmp_path / name).rename(tmp_path / "elsewhere" / name)
    after, _ = load(tmp_path / "elsewhere" / "adapter")
    assert torch.equal(before.score.weight, after.score.weight)


def test_adapters_that_cannot_serve_are_refused(tmp_path):
    made(AutoModelForCausalLM, llama(), seed=1).save_pretrained(tmp_path / "base")
    network = AutoModelForTokenClassification.from_pretrained(tmp_path / "base", num_labels=1)
    path = save(adapt(network, "TOKEN_CLS"), None, INFO, tmp_path / "adapter")
    (path / manifest.NAME).unlink()
    (path / "adapter_model.safetensors").rename(path / "adapter_model.bin")
    with pytest.raises(OSError, match="adapter_model"):
        load(path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    prompts = get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    prompts.save_pretrained(tmp_path / "prompts")
    with pytest.raises(ValueError, match="cannot be merged"):
        load(tmp_path / "prompts", family="log_ratio")


def damaged(path, damage):
    weights = path / "model.safetensors"
    data = bytearray(weights.read_bytes())
    if damage == "truncated":
        del data[len(data) // 2 :]
    elif damage == "flipped bit":
        data[-5] ^= 1
    weights.write_bytes(data)
    if damage == "missing":
        weights.unlink()


@pytest.mark.parametrize("damage", ["truncated", "flipped bit", "missing"])
def test_a_damaged_checkpoint_is_refused_by_name(damage, tmp_path):
    path = save(made(AutoModelForTokenClassification, llama(num_labels=1)), None, INFO, tmp_path)
    damaged(path, damage)
    with pytest.raises(manifest.BrokenCheckpoint, match=r"model\.safetensors"):
        load(path)


def test_without_a_manifest_a_checkpoint_loads_as_before(tmp_path):
    path = save(made(AutoModelForTokenClassification, llama(num_labels=1)), None, INFO, tmp_path)
    (path / manifest.NAME).unlink()
    assert load(path)[1] == INFO
    damaged(path, "truncated")
    with pytest.raises(ValueError, match="damaged"):
        load(path)


def test_other_networks_are_refused(tmp_path):
    made(AutoModelForCausalLM, llama()).save_pretrained(tmp_path / "lm")
    with pytest.raises(ValueError, match="lacks the weights"):
        load(tmp_path / "lm")
    wide = made(AutoModelForTokenClassification, llama(num_labels=3))
    wide.save_pretrained(tmp_path / "wide")
    with pytest.raises(ValueError, match="fit"):
        load(tmp_path / "wide")
    with pytest.raises(OSError, match="nothing"):
        load(tmp_path / "nothing")


KILLED = """
import os, sys
from pathlib import Path
import torch
from trimtab_models import checkpoint

path = Path(sys.argv[1])
aside = path.with_name(f".{path.name}.old")
model, info = checkpoint.load(path)
old, found = model.score.weight.clone(), set()


def dying(original, left):
    def wrapper(*args, **kwargs):
        left.pop() if left else os._exit(9)
        return original(*args, **kwargs)
    return wrapper


for calls in range(20):
    child = os.fork()
    if child == 0:
        left = [0] * calls
        os.fsync, Path.rename = dying(os.fsync, left), dying(Path.rename, left)
        model.score.weight.data += 1
        checkpoint.save(model, None, info, path)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    there = path if path.exists() else aside
    weight = checkpoint.load(there)[0].score.weight
    new = not torch.equal(weight, old)
    assert not new or torch.equal(weight, old + 1)
    found.add((os.waitstatus_to_exitcode(status), there == aside, new))
    if status == 0:
        break
    if there == aside:
        aside.rename(path)
print(sorted(found))
"""


@pytest.mark.slow
def test_a_save_that_is_killed_leaves_the_old_checkpoint_or_the_new(tmp_path):
    """At every flush and every rename; between the two renames the old one lies aside, whole."""
    model = made(AutoModelForTokenClassification, llama(num_labels=1))
    path = save(model, None, INFO, tmp_path / "out")
    done = subprocess.run(
        [sys.executable, "-c", KILLED, path],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    # killed with the old one in its place, killed with it aside, killed after, not killed
    outcomes = [(0, False, True), (9, False, False), (9, False, True), (9, True, False)]
    assert done.stdout == f"{outcomes}\n"
