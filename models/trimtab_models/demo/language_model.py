"""The demo's base model: a byte-level BPE tokenizer and a small Llama, both from scratch."""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from trimtab_models.demo import corpus

VOCABULARY = 1024
PAD, EOS, SYSTEM, USER, ASSISTANT, TOOL = SPECIALS = (
    "<|pad|>",
    "<|end|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|tool|>",
)
TOOL_CALL = ("<tool_call>", "</tool_call>")

CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja").read_text(encoding="utf-8")


def chat_tokenizer(core: Tokenizer, length: int = 512, **special: str) -> PreTrainedTokenizerFast:
    """A tokenizer of texts of up to `length` tokens, with the chat template and its special tokens.

    special: further special tokens, by transformers' names.
    """
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT, TOOL],
        chat_template=CHAT_TEMPLATE,
        padding_side="right",
        model_max_length=length,
        clean_up_tokenization_spaces=False,
        **special,
    )


def train_tokenizer(texts: int = 20_000, seed: int = 0) -> PreTrainedTokenizerFast:
    """A byte-level BPE of `VOCABULARY` tokens.

    It can encode any UTF-8 text without loss, and each word of the world is one token.
    """
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(TOOL_CALL),
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    documents = corpus.documents(chat_tokenizer(core), texts, seed)
    parts = (part for text in documents for part in _between_marks(text))
    core.train_from_iterator(parts, trainer)
    core.add_tokens(list(TOOL_CALL))
    return chat_tokenizer(core)


def _between_marks(text: str) -> list[str]:
    for mark in (*SPECIALS, *TOOL_CALL):
        text = text.replace(mark, "\x00")
    return [part for part in text.split("\x00") if part]


def config(tokenizer: PreTrainedTokenizerFast, **sizes: Any) -> LlamaConfig:
    """A Llama for this tokenizer; sizes as LlamaConfig names them."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **sizes,
    )


BASE_SIZES: dict[str, int] = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
}
SCORER_SIZES: dict[str, int] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
