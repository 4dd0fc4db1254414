"""The base model of a world: one token per word, and a small Llama trained from scratch."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from trimtab_models import training
from trimtab_models.demo.language_model import SPECIALS, chat_tokenizer
from trimtab_models.training import saves

_, EOS, _, USER, ASSISTANT, _ = SPECIALS
UNKNOWN = "<|unknown|>"
SIZES: dict[str, int] = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
# In a network this narrow, larger initial weights make copying several times faster to learn, and a
# smaller rope_theta makes attention to the last few tokens easier to learn.
INITIAL: dict[str, Any] = {
    "initializer_range": 0.08,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
}
MAX_LENGTH = 256  # tokens of a text


def tokenizer_of(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer with the words of the texts, which are separated by spaces."""
    marks = (*SPECIALS, UNKNOWN)
    spaced = "\n".join(texts)
    for mark in marks:
        spaced = spaced.replace(mark, " ")
    words = [*marks, *sorted({*spaced.split()})]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return chat_tokenizer(core, MAX_LENGTH, unk_token=UNKNOWN)


def _answers(ids: Sequence[int], assistant: int) -> list[int]:
    """The ids as labels: −100 before the last answer."""
    start = len(ids) - list(reversed(ids)).index(assistant)
    return [-100] * start + list(ids[start:])


def train(texts: Sequence[str], out: Path, **settings: Any) -> None:
    """Train a model on the texts' last answers; write it and its tokenizer to `out` in float16.

    Args:
        texts: chats, as the chat template renders them.
        out: the directory; it appears only when it is complete. A killed training resumes.
        settings: of `training.fit`.
    """
    tokenizer = tokenizer_of(texts)
    assistant, eos = tokenizer.convert_tokens_to_ids([ASSISTANT, EOS])
    set_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            head_dim=32,
            max_position_embeddings=MAX_LENGTH,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=eos,
            pad_token_id=tokenizer.pad_token_id,
            **SIZES,
            **INITIAL,
        )
    )

    def collate(chosen: Sequence[list[int]]) -> dict[str, Tensor]:
        def padded(rows: Iterable[list[int]], value: int) -> Tensor:
            tensors = [torch.tensor(row) for row in rows]
            return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value)

        ids = padded(chosen, -1)
        return {
            "input_ids": ids.clamp(min=tokenizer.pad_token_id),
            "attention_mask": (ids >= 0).long(),
            "labels": padded((_answers(row, assistant) for row in chosen), -100),
        }

    work = saves.run_directory(out)
    training.fit(
        model,
        [tokenizer(text, add_special_tokens=False).input_ids for text in texts],
        collate,
        lambda network, batch: network(**batch).loss,
        work,
        **{"epochs": 1, "batch_size": 32, "learning_rate": 3e-3, "seed": 0, **settings},
    )
    with saves.placing(out) as part:
        model.half().save_pretrained(part)
        tokenizer.save_pretrained(part)
    training.clear(work)
