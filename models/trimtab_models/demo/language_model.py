"""The demo's base model: a byte-level BPE tokenizer and a small Llama, both from scratch."""

import random
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

# Tools are shown as name(argument, argument): a model this small reads no JSON schema.
CHAT_TEMPLATE = """\
{%- if tools %}<|system|>Tools:
{%- for tool in tools %}{% set f = tool.function if tool.function is defined else tool %} {{ f.name }}(
{%- if f.parameters and f.parameters.properties %}{{ f.parameters.properties.keys() | join(', ') }}{% endif %})
{%- endfor %}<|end|>{% endif %}
{%- for message in messages %}
{%- if message.role in ('system', 'developer') %}<|system|>{% elif message.role == 'assistant' %}<|assistant|>
{%- elif message.role == 'tool' %}<|tool|>{% else %}<|user|>{% endif %}
{%- if message.content is string %}{{ message.content }}{% elif message.content %}
{%- for part in message.content %}{% if part.text is defined %}{{ part.text }}{% endif %}{% endfor %}{% endif %}
{%- for call in message.tool_calls or [] %}{% set f = call.function if call.function is defined else call -%}
<tool_call>{"name": "{{ f.name }}", "arguments": {{ f.arguments if f.arguments is string else f.arguments | tojson }}}</tool_call>
{%- endfor %}<|end|>
{%- endfor %}
{%- if add_generation_prompt %}<|assistant|>{% endif %}"""  # noqa: E501  a template's line breaks are its own


def _wrap(core: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT, TOOL],
        chat_template=CHAT_TEMPLATE,
        padding_side="right",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def train_tokenizer(texts: int = 20_000, seed: int = 0) -> PreTrainedTokenizerFast:
    """A byte-level BPE of `VOCABULARY` tokens: any UTF-8 text round-trips, the world's words are one."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(TOOL_CALL),
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    parts = (
        part
        for text in corpus.documents(_wrap(core), texts, seed)
        for part in _between_marks(text)
    )
    core.train_from_iterator(parts, trainer)
    core.add_tokens(list(TOOL_CALL))
    return _wrap(core)


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
