"""Two classifiers of text for the demo world, each with a tokenizer of its own: not the base's.

    python -m trimtab_models.demo.classifiers deberta --out DIR   # DeBERTa-v2, of sentiment
    python -m trimtab_models.demo.classifiers roberta --out DIR   # RoBERTa, of formality

What a reward model from a hub is to a base that it was not made for. They are trained, in a minute
or two of one core, on reviews cut off anywhere and the reward of the whole,

    L = E (s(y^{1:t}) − R(y))²   over characters t of y

so that they can tell of a beginning how it will end (FUDGE, CD); a classifier trained on whole
texts alone is arbitrary on beginnings (PARGS, Theorem 1).
"""

import argparse
import random
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
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    set_seed,
)

from trimtab_models.demo import oracles, world

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
REWARDS = {"deberta": "sentiment", "roberta": "formality"}


def reviews(seed: int) -> Iterator[str]:
    """Reviews of the demo world, without end."""
    draw = random.Random(seed)
    while True:
        yield world.review(draw.choice(world.KINDS), draw)


def _corpus() -> list[str]:
    return [text for text, _ in zip(reviews(SEED + 1), range(4000), strict=False)]


def deberta() -> tuple[Any, PreTrainedTokenizerFast]:
    """A fresh DeBERTa-v2 of one logit, and a unigram tokenizer."""
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


def roberta() -> tuple[Any, PreTrainedTokenizerFast]:
    """A fresh RoBERTa of one logit, and a byte-level tokenizer."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1200,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(_corpus(), trainer)
    tokenizer = _wrap(core, "<pad>", "<s>", "</s>", "<unk>")
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=WINDOW + 2,  # positions begin behind the padding's
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        **SIZES,
    )
    return RobertaForSequenceClassification(config), tokenizer


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
    """Train one of `REWARDS` and write it, as transformers does, to `out`."""
    set_seed(SEED)
    model, tokenizer = {"deberta": deberta, "roberta": roberta}[kind]()
    reward, texts, draw = oracles.rewards[REWARDS[kind]], reviews(SEED), random.Random(SEED)
    optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=steps)
    model.train()
    for _ in (bar := trange(steps, desc=kind, unit="step")):
        wholes = [next(texts) for _ in range(BATCH)]
        cut = [text[: draw.randint(1, len(text))] for text in wholes]
        inputs = tokenizer(cut, padding=True, truncation=True, return_tensors="pt")
        target = torch.tensor([reward("", text) for text in wholes])
        loss = F.mse_loss(model(**inputs).logits[:, 0], target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")
    model.eval().save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m trimtab_models.demo.classifiers")
    parser.add_argument("kind", choices=REWARDS, help="which of the two")
    parser.add_argument("--out", type=Path, required=True, help="directory of the new checkpoint")
    given = parser.parse_args()
    build(given.kind, given.out)


if __name__ == "__main__":
    main()
