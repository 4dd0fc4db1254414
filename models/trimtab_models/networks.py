"""Scorer networks: any causal backbone of transformers with a scalar or a vocabulary head.

They are plain transformers classes, so that transformers alone can load a trained network:
a scalar head is a `*ForTokenClassification` with one label (a value for every prefix), or a
`*ForSequenceClassification` for architectures without it (OPT); a distribution head is the same
with one label for each bin, or for each bin of each next token; a vocabulary head is a
`*ForCausalLM` whose logits are read as Q(prefix, ·) or as log π_r(· | prefix).
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
)

from trimtab_models import kinds, pretrained
from trimtab_models.files import Unusable

Source: TypeAlias = str | Path | PretrainedConfig
"""A checkpoint directory, a hub name, or a configuration (for random weights)."""

HEADS = ("score", "classifier")
"""Names of the head in transformers' classifiers."""

KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""PyTorch's attention without cuDNN's, see `attention_of_any_shape`."""

LIKELY = 0.5
"""Weight of a token's log-likelihood in the logit of its highest return; see `next_histograms`."""

Head = Literal[
    "scalar",
    "scalars",
    "distribution",
    "distributions",
    "vocabulary",
    "vocabulary+value",
    "language",
]
"""The head that an objective trains; see `build`."""


def attention_of_any_shape() -> AbstractContextManager[None]:
    """Attention by kernels that need no preparation for a new shape.

    cuDNN's, which PyTorch prefers on Hopper, plans each shape when it first occurs: 7 ms a layer
    (torch 2.11, H200), and at each decode step the prefixes are longer.
    """
    return sdpa_kernel(KERNELS)


def longest(config: PretrainedConfig) -> int | None:
    """The maximum tokens that a network reads; None if its configuration has no limit."""
    text = config.get_text_config()
    stretched = "factor" in (getattr(text, "rope_parameters", None) or {})
    return None if stretched else getattr(text, "max_position_embeddings", None)


def kv_shape(config: PretrainedConfig) -> tuple[int, int, int]:
    """Layers, K/V heads of each, and dimensions of a head: what a token's K/V have."""
    text = config.get_text_config()
    heads = text.num_attention_heads
    return (
        text.num_hidden_layers,
        getattr(text, "num_key_value_heads", None) or heads,
        getattr(text, "head_dim", None) or text.hidden_size // heads,
    )


def build(head: Head, source: Source, *, bins: int = 1, **options: Any) -> Any:
    """A new scorer network on a backbone, ready for training.

    scalar             one number for every prefix, [..., 1]; or `bins` of them, the independent
                       heads of an ensemble
    scalars            two, whose sum is the score, [..., 2]; see `add_up`
    distribution       logits of a histogram over returns, [..., bins]
    distributions      the same after each next token, see `next_histograms`
    vocabulary         Q(prefix, ·), [..., vocab]; initially 0
    vocabulary+value   Q's parts and V(prefix), [..., vocab + 1]; initially 0; see `fold`
    language           an unchanged language model, [..., vocab]

    Raises:
        OSError: there is no such source, or no safetensors in it.
        Unusable: (a ValueError) its weights do not fit such a network, or it is not causal.
    """
    model = _initial(head, source, bins, **options)
    _check_causal(source, model)
    if not head.startswith("vocabulary"):
        return model
    old = model.get_output_embeddings()
    width = model.get_input_embeddings().num_embeddings + (head == "vocabulary+value")
    new = nn.Linear(old.in_features, width, bias=False).to(old.weight)
    nn.init.zeros_(new.weight)
    return _set_output(model, new)


def _initial(head: Head, source: Source, bins: int, **options: Any) -> Any:
    if head == "distributions":
        return _next_token_head(source, bins, **options)
    widths = {"scalar": bins, "scalars": 2, "distribution": bins}
    if head in widths:
        return scalar_head(source, bins=widths[head], **options)
    return vocabulary_head(source, **options)


def _check_causal(source: Source, model: Any) -> None:
    """A network's output for a prefix must not depend on later tokens."""
    if not all(parameter.numel() for parameter in model.parameters()):
        return  # DeepSpeed keeps the weights elsewhere
    ids = torch.arange(8, device=model.device) % model.get_input_embeddings().num_embeddings
    ids = torch.stack((ids, torch.cat((ids[:-1], ids[:1]))))  # they differ in the last token
    try:
        with torch.inference_mode():
            first, second = split(model)[0](input_ids=ids).last_hidden_state[:, :-1]
    except Exception as error:
        raise Unusable(f"{source} cannot read a text alone ({type(error).__name__}).") from error
    if not torch.allclose(first, second, rtol=1e-3, atol=1e-3):
        raise Unusable(f"{source} reads a text in both directions; expected a causal network.")


def _next_token_head(source: Source, bins: int, **options: Any) -> Any:
    """A head for `next_histograms`; it copies a language model's output embedding."""
    config: Any = source
    if not isinstance(source, PretrainedConfig):
        config = pretrained.configuration(source)
    model = scalar_head(source, bins=config.vocab_size * (bins + 1), **options)
    if (getattr(config, "architectures", None) or [""])[0].endswith("ForCausalLM"):
        likely = vocabulary_head(source, **options).get_output_embeddings()
        head: Any = split(model)[1]
        rows = head.weight.data.unflatten(0, (config.vocab_size, -1))
        rows[:, :-1].zero_()
        rows[:, -1].copy_(likely.weight)
    return model


def next_histograms(outputs: Tensor, vocab: int) -> Tensor:
    """Logits of the histograms after each next token, from the output before that token.

        logit_b(v) = a_b(v)·h + LIKELY·(b / (bins − 1))·log q(v),   q = softmax_v(l(v)·h)

    where a_b(v) are the head's rows for a token's bins, and l(v) is the row for its likelihood,
    copied from the base. So a new scorer rates tokens high that are likely under the base, and
    training corrects it; without this term it learns slowly which tokens are plausible.

    [..., vocab · (bins + 1)], a token's bins and then its l → [..., vocab, bins].
    """
    table = outputs.unflatten(-1, (vocab, -1))
    log_q = table[..., -1].float().log_softmax(-1)
    slopes = LIKELY * torch.linspace(0, 1, table.shape[-1] - 1, device=outputs.device)
    return table[..., :-1] + log_q[..., None] * slopes


def fold(model: Any, combine: Callable[[Tensor], Tensor]) -> Any:
    """Turn a `vocabulary+value` head into a plain vocabulary head, in place.

    combine: the linear map of the head's outputs to Q, [..., vocab + 1] → [..., vocab]. As
    outputs = W·h, Q = combine(W·h) = combine(Wᵀ)ᵀ·h.
    """
    old = model.get_output_embeddings()
    with torch.no_grad():
        weight = combine(old.weight.T).T.contiguous()
    new = nn.Linear(old.in_features, len(weight), bias=False).to(old.weight)
    new.weight.data.copy_(weight)
    return _set_output(model, new)


def add_up(model: Any) -> Any:
    """Turn a `scalars` head into a scalar head with the sum of its outputs, in place."""
    old: Any = split(model)[1]
    name = next(name for name in HEADS if getattr(model, name, None) is old)
    new = nn.Linear(old.in_features, 1, bias=old.bias is not None).to(old.weight)
    with torch.no_grad():
        for part, sums in new.named_parameters():
            sums.copy_(getattr(old, part).sum(0, keepdim=True))
    setattr(model, name, new)
    model.config.num_labels = model.num_labels = 1
    return model


def _set_output(model: Any, head: nn.Module) -> Any:
    # The new output embedding must not be tied to the input embedding when saved and loaded.
    model.config.tie_word_embeddings = False
    model.set_output_embeddings(head)
    return model


def _scalar_class(config: PretrainedConfig) -> Any:
    named = (getattr(config, "architectures", None) or [""])[0]
    if named.endswith("ForSequenceClassification"):
        return AutoModelForSequenceClassification
    if type(config) in MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING:
        return AutoModelForTokenClassification
    return AutoModelForSequenceClassification


def _built(auto: Any, config: PretrainedConfig, **options: Any) -> Any:
    dtype = options.pop("dtype", torch.float32)
    return auto.from_config(config, trust_remote_code=False, **options).to(dtype).eval()


def scalar_head(source: Source, *, bins: int = 1, fresh: bool = True, **options: Any) -> Any:
    """A causal backbone with a linear head to one number: V(x) = w·h(x) + b for each prefix x.

    With `bins` > 1 the head has `bins` outputs, the logits of a histogram.

    If `source` is a language model, only its backbone is used and the head is new; without `fresh`
    that is an error. `options` (dtype, attn_implementation, ...) go to transformers.

    Raises:
        as pretrained.network.
    """
    is_config = isinstance(source, PretrainedConfig)
    config: Any = source if is_config else pretrained.configuration(source, num_labels=bins)
    config.num_labels = bins
    # transformers puts a dropout of 0.1 before such heads; where a value is bootstrapped from or
    # exponentiated, that noise becomes a bias.
    config.classifier_dropout = 0.0
    auto = _scalar_class(config)
    if isinstance(source, PretrainedConfig):
        return _built(auto, config, **options)
    has_head = kinds.kind(source, config) in ("sequence", "token")
    new = HEADS if fresh and not has_head else ()
    return pretrained.network(auto, source, config=config, new=new, **options)


def is_encoder(config: PretrainedConfig) -> bool:
    """Whether transformers has networks of this kind that read a text in both directions.

    Among them are encoder-decoders: what they read of a text is its whole.
    """
    masked = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(
        config, "is_decoder", False
    )
    return masked or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING


def classifier(source: str | Path, *, fresh: bool = True, **options: Any) -> Any:
    """A network that reads a whole text, with a head to one number: s(x) = head(pool(x)).

    A reward model (*ForSequenceClassification of one label) keeps its head. Any other network gets
    a new head and pooler; without `fresh` that is an error.

    Raises:
        as pretrained.network; also Unusable: it has a head of several labels.
    """
    config = pretrained.configuration(source)
    kept = kinds.kind(source, config) == "sequence"
    if kept and config.num_labels != 1:
        raise Unusable(
            f"{source} has {config.num_labels} labels, and a scorer has one; expected a reward "
            "model of one label, or a network without a head."
        )
    config.num_labels = 1
    new = () if kept or not fresh else outer_weights(skeleton(config))
    auto = AutoModelForSequenceClassification
    return pretrained.network(auto, source, config=config, new=new, **options)


def skeleton(config: PretrainedConfig) -> Any:
    """A sequence classifier without weights, for what its modules tell.

    Raises:
        ValueError: transformers has no classifier of this kind.
    """
    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)


def outer_weights(model: PreTrainedModel) -> list[str]:
    """Names of the weights of a classifier's head and pooler, which language models lack."""
    backbone = f"{model.base_model_prefix}."
    names = [name for name, _ in model.named_parameters()]
    return [name for name in names if not name.startswith(backbone) or ".pooler." in name]


def vocabulary_head(source: Source, **options: Any) -> Any:
    """A causal language model with one output for every next token: [..., vocab].

    Raises:
        as pretrained.network.
    """
    if isinstance(source, PretrainedConfig):
        return _built(AutoModelForCausalLM, source, **options)
    config = pretrained.configuration(source)
    kinds.check(source, "vocabulary", kinds.kind(source, config), kinds.named(config))
    return pretrained.network(AutoModelForCausalLM, source, config=config, **options)


def split(model: PreTrainedModel) -> tuple[PreTrainedModel, nn.Module]:
    """The backbone and the head of a scorer network.

    head(backbone(input_ids=…, position_ids=…).last_hidden_state) is the network's output:
    [..., 1] for a scalar head, [..., vocab] for a vocabulary head.
    """
    for name in HEADS:
        head = getattr(model, name, None)
        if isinstance(head, nn.Module):
            return model.base_model, head
    head = model.get_output_embeddings()
    if head is None:
        raise ValueError(
            f"{type(model).__name__} has neither a `score` or `classifier` head nor output "
            "embeddings; expected a *ForTokenClassification, *ForSequenceClassification "
            "or *ForCausalLM model."
        )
    return model.base_model, head
