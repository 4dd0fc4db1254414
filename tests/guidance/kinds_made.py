"""Tiny checkpoints of every kind that somebody may name as a scorer."""

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    LlamaConfig,
    T5Config,
)

from trimtab_models.checkpoint import ScorerInfo, save
from trimtab_models.networks import scalar_head, vocabulary_head

LENGTH = 64
AUTO = {
    "lm": AutoModelForCausalLM,
    "token": AutoModelForTokenClassification,
    "sequence": AutoModelForSequenceClassification,
    "bare": AutoModel,
    "masked": AutoModelForMaskedLM,
    "seq2seq": AutoModelForSeq2SeqLM,
}


def llama(vocab, **more):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaConfig(
        **{"vocab_size": vocab, "max_position_embeddings": LENGTH, **sizes, **heads, **more}
    )


def bert(vocab, **more):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    return BertConfig(
        vocab_size=vocab, num_attention_heads=4, max_position_embeddings=LENGTH, **sizes, **more
    )


def t5(vocab, **more):
    return T5Config(
        vocab_size=vocab, d_model=32, d_ff=48, num_layers=1, num_heads=4, d_kv=8, **more
    )


def made(kind, config, seed=0):
    """A network with weights that tell its inputs apart."""
    torch.manual_seed(seed)
    model = AUTO[kind].from_config(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def adapter(base: Path, task: str, out: Path):
    auto = {"CAUSAL_LM": "lm", "SEQ_CLS": "sequence", "TOKEN_CLS": "token"}[task]
    labels = {} if auto == "lm" else {"num_labels": 1}
    network = AUTO[auto].from_pretrained(base, **labels)
    adapted = get_peft_model(network, LoraConfig(task_type=task, r=2, target_modules=["q_proj"]))
    adapted.save_pretrained(out)


def build(root: Path, tokenizer) -> None:
    """All of them below `root`, each with the tokenizer."""
    vocab = len(tokenizer)
    one, three = {"num_labels": 1}, {"num_labels": 3}
    plain = {
        "lm": ("lm", llama(vocab)),
        "lm-tied": ("lm", llama(vocab, tie_word_embeddings=True)),
        "token": ("token", llama(vocab, **one)),
        "token-3": ("token", llama(vocab, **three)),
        "token-tied": ("token", llama(vocab, tie_word_embeddings=True, **one)),
        "sequence": ("sequence", llama(vocab, pad_token_id=0, **one)),
        "sequence-3": ("sequence", llama(vocab, pad_token_id=0, **three)),
        "bare": ("bare", llama(vocab)),
        "encoder": ("bare", bert(vocab)),
        "encoder-masked": ("masked", bert(vocab)),
        "encoder-token": ("token", bert(vocab, **one)),
        "encoder-sequence": ("sequence", bert(vocab, **one)),
        "encoder-decoder": ("seq2seq", t5(vocab)),
    }
    for seed, (name, (kind, config)) in enumerate(plain.items()):
        made(kind, config, seed).save_pretrained(root / name)
    for name, task in (
        ("lora-lm", "CAUSAL_LM"),
        ("lora-seq", "SEQ_CLS"),
        ("lora-tok", "TOKEN_CLS"),
    ):
        adapter(root / "lm", task, root / name)
    scorers = {
        "our-head": (scalar_head, {}, ScorerInfo()),
        "our-distribution": (
            scalar_head,
            {"bins": 5},
            ScorerInfo(family="distribution", support=(0.0, 1.0)),
        ),
        "our-vocabulary": (vocabulary_head, {}, ScorerInfo(family="vocabulary")),
        "our-log_ratio": (vocabulary_head, {}, ScorerInfo(family="log_ratio")),
    }
    for name, (make, options, info) in scorers.items():
        save(make(llama(vocab), **options), tokenizer, info, root / name)
    for directory in root.iterdir():
        tokenizer.save_pretrained(directory)
        (directory / "MANIFEST.json").unlink(missing_ok=True)
