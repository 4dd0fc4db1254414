"""Small random networks of every family that must be served."""

from transformers import (
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PhiConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

VOCAB = 97
LENGTH = 128

_grouped = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": LENGTH,
}


def configs() -> dict[str, PretrainedConfig]:
    """Fresh configurations: a network keeps the one it was built from."""
    plain = {k: v for k, v in _grouped.items() if k != "num_key_value_heads"}
    return {
        "llama": LlamaConfig(**_grouped),
        "qwen2": Qwen2Config(**_grouped),
        "qwen2-sliding": Qwen2Config(
            **_grouped, use_sliding_window=True, sliding_window=9, max_window_layers=1
        ),
        "qwen3": Qwen3Config(**_grouped, head_dim=16),
        "mistral": MistralConfig(**_grouped, sliding_window=None),
        "mistral-sliding": MistralConfig(**_grouped, sliding_window=11),
        "gemma": GemmaConfig(**_grouped, head_dim=16),
        "phi": PhiConfig(**_grouped),
        "gpt_neox": GPTNeoXConfig(**plain),
        "gpt2": GPT2Config(vocab_size=VOCAB, n_embd=64, n_layer=3, n_head=4, n_positions=LENGTH),
        "opt": OPTConfig(
            vocab_size=VOCAB,
            hidden_size=64,
            ffn_dim=96,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            word_embed_proj_dim=64,
        ),
    }
