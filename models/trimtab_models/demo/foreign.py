"""Scorers for the demo world with their own tokenizers, different from the base's.

    python -m trimtab_models.demo.foreign deberta --out DIR   # DeBERTa-v2, classifier of sentiment
    python -m trimtab_models.demo.foreign roberta --out DIR   # RoBERTa, classifier of formality
    python -m trimtab_models.demo.foreign pythia --out DIR    # GPT-NeoX, value of sentiment

They stand for models from a hub that were not made for the base. Training takes one or two minutes
on one core and uses reviews, cut at random places, with the reward of the whole review,

    L = E (s(y^{1:t}) − R(y))²   over characters t of y, for a value over tokens

so that they predict a review's reward from its beginning (FUDGE, CD); a classifier trained only on
whole texts has arbitrary scores on beginnings (PARGS, Theorem 1).
"""

import argparse
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from torch.nn import functional as F
from tqdm import trange
from transformers import (
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    GPTNeoXConfig,
    GPTNeoXForTokenClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    set_seed,
)

from trimtab_models import checkpoint, outputs
from trimtab_models.demo import oracles, world
from trimtab_models.info import ScorerInfo
from trimtab_models.training import saves

STEPS, BATCH, LEARNING_RATE, SEED = 500, 32, 2e-3, 0
WINDOW = 256
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "num_labels": 1,
}
REWARDS = {"deberta": "sentiment", "roberta": "formality", "pythia": "sentiment"}


def reviews(seed: int) -> Iterator[str]:
    """An endless stream of reviews of the demo world."""
    rng = random.Random(seed)
    while True:
        yield world.review(rng.choice(world.KINDS), rng)


def _corpus() -> list[str]:
    return [text for text, _ in zip(reviews(SEED + 1), range(4000), strict=False)]


def deberta() -> tuple[Any, PreTrainedTokenizerFast]:
    """A new DeBERTa-v2 with one logit, and a unigram tokenizer."""
    core = Tokenizer(models.Unigram())
    core.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Strip()])
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=900,
        special_tokens=["[PAD]", "[CLS]", "[SEP]", "[UNK]"],
        unk_token="[UNK]",
        show_progress=False,
    )
    core.train_from_iterator(_corpus(), trainer)
    tokenizer = _wrap(core, "[PAD]", "[CLS]", "[SEP]", "[UNK]")
    config = DebertaV2Config(
        vocab_size=len(tokenizer),
        max_position_embeddings=WINDOW,
        relative_attention=True,
        position_biased_input=False,
        pos_att_type=["p2c", "c2p"],
        position_buckets=32,
        pad_token_id=tokenizer.pad_token_id,
        pooler_hidden_size=SIZES["hidden_size"],
        **SIZES,
    )
    return DebertaV2ForSequenceClassification(config), tokenizer


def _byte_level(vocab_size: int) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(_corpus(), trainer)
    return _wrap(core, "<pad>", "<s>", "</s>", "<unk>")


def roberta() -> tuple[Any, PreTrainedTokenizerFast]:
    """A new RoBERTa with one logit, and a byte-level tokenizer."""
    tokenizer = _byte_level(1200)
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=WINDOW + 2,  # the first positions are for padding
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        **SIZES,
    )
    return RobertaForSequenceClassification(config), tokenizer


def pythia() -> tuple[Any, PreTrainedTokenizerFast]:
    """A new GPT-NeoX with one output for every prefix, and a byte-level tokenizer."""
    tokenizer = _byte_level(700)
    config = GPTNeoXConfig(
        vocab_size=len(tokenizer), max_position_embeddings=2 * WINDOW, rotary_pct=0.25, **SIZES
    )
    return GPTNeoXForTokenClassification(config), tokenizer


def _wrap(core: Tokenizer, pad: str, cls: str, sep: str, unk: str) -> PreTrainedTokenizerFast:
    core.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B {sep}",
        special_tokens=[(token, core.token_to_id(token)) for token in (cls, sep)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=pad,
        cls_token=cls,
        sep_token=sep,
        unk_token=unk,
        model_max_length=WINDOW,
        model_input_names=["input_ids", "attention_mask"],
    )


def build(kind: str, out: Path, steps: int = STEPS) -> Path:
    """Train one of `REWARDS` and write it to `out` in transformers' format.

    Raises:
        InTheWay: (an OSError) `out` is neither absent nor empty. Nothing was done.
    """
    outputs.check_empty(out)
    outputs.check_free(out)
    set_seed(SEED)
    model, tokenizer = {"deberta": deberta, "roberta": roberta, "pythia": pythia}[kind]()
    reward, texts, rng = oracles.rewards[REWARDS[kind]], reviews(SEED), random.Random(SEED)
    optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=steps)
    model.train()
    for _ in (bar := trange(steps, desc=kind, unit="step")):
        whole = [next(texts) for _ in range(BATCH)]
        rewards = torch.tensor([reward("", text) for text in whole])  # [rows]
        cut = whole if kind == "pythia" else [t[: rng.randint(1, len(t))] for t in whole]
        inputs = tokenizer(cut, padding=True, truncation=True, return_tensors="pt")
        scores = model(**inputs).logits[..., 0]  # [rows], or [rows, tokens] for a value
        if kind == "pythia":
            read = inputs["attention_mask"].bool()
            scores, rewards = scores[read], rewards[:, None].expand_as(read)[read]
        loss = F.mse_loss(scores, rewards)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")
    if kind == "pythia":
        info = ScorerInfo(objective="value of every prefix", is_value=True)
        return checkpoint.save(model.eval(), tokenizer, info, out, text="A value of sentiment.")
    with saves.placing(out) as part:
        model.eval().save_pretrained(part)
        tokenizer.save_pretrained(part)
    return out


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m trimtab_models.demo.foreign")
    parser.add_argument("kind", choices=REWARDS, help="the architecture")
    parser.add_argument("--out", type=Path, required=True, help="directory of the new checkpoint")
    options = parser.parse_args()
    try:
        build(options.kind, outputs.place(options.out))
    except OSError as error:
        sys.exit(f"trimtab: {error}")


if __name__ == "__main__":
    main()
