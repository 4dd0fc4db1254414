"""Scorer networks: any causal backbone of transformers with a scalar or a vocabulary head.

They are plain transformers classes, so that transformers alone can load what was trained:
a scalar head is a `*ForTokenClassification` with one label (a value for every prefix), or a
`*ForSequenceClassification` for the families that have no other (OPT); a distribution head is the
same with one label a bin, or one for each bin of each next token; a vocabulary head is a
`*ForCausalLM` whose logits are read as Q(prefix, ·) or as log π_r(· | prefix).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING

from trimtab_models import kinds, pretrained
from trimtab_models.files import Unusable

Source: TypeAlias = str | Path | PretrainedConfig
"""A checkpoint directory, a hub name, or a configuration (which gives random weights)."""

HEADS = ("score", "classifier")
"""Names of a head in transformers' classifiers."""

LIKELY = 0.5
"""Weight of a token's log-likelihood in the logits of its best return, see `next_histograms`."""

Head = Literal[
    "scalar", "distribution", "distributions", "vocabulary", "vocabulary+value", "language"
]
"""What an objective trains; see `build`."""


def longest(config: PretrainedConfig) -> int | None:
    """The most tokens that a network was made to read; None if its configuration leaves it open."""
    text = config.get_text_config()
    stretched = "factor" in (getattr(text, "rope_parameters", None) or {})
    return None if stretched else getattr(text, "max_position_embeddings", None)


def build(head: Head, source: Source, *, bins: int = 1, **options: Any) -> Any:
    """A new scorer network on a backbone, ready to be trained.

    scalar             one number for every prefix, [..., 1]
    distribution       logits of a histogram over returns, [..., bins]
    distributions      the same after each next token, see `next_histograms`
    vocabulary         Q(prefix, ·), [..., vocab]; 0 at first
    vocabulary+value   Q's parts and V(prefix), [..., vocab + 1]; 0 at first; to be folded
    language           a language model as it is, [..., vocab]

    Raises:
        OSError: there is no such source, or no safetensors in it.
        Unusable: (a ValueError) its weights are not those of such a network, or it looks ahead.
    """
    model = _begin(head, source, bins, **options)
    _refuse_looking_ahead(source, model)
    if not head.startswith("vocabulary"):
        return model
    old = model.get_output_embeddings()
    width = model.get_input_embeddings().num_embeddings + (head == "vocabulary+value")
    new = nn.Linear(old.in_features, width, bias=False).to(old.weight)
    nn.init.zeros_(new.weight)
    return _set_output(model, new)


def _begin(head: Head, source: Source, bins: int, **options: Any) -> Any:
    if head == "distributions":
        return _next_token_head(source, bins, **options)
    if head in ("scalar", "distribution"):
        return scalar_head(source, bins=bins if head == "distribution" else 1, **options)
    return vocabulary_head(source, **options)


def _refuse_looking_ahead(source: Source, model: Any) -> None:
    """What a network makes of a prefix must not depend on what comes after it."""
    if not all(parameter.numel() for parameter in model.parameters()):
        return  # DeepSpeed holds the weights elsewhere
    ids = torch.arange(8, device=model.device) % model.get_input_embeddings().num_embeddings
    ids = torch.stack((ids, torch.cat((ids[:-1], ids[:1]))))  # they differ in the last token
    try:
        with torch.inference_mode():
            first, second = split(model)[0](input_ids=ids).last_hidden_state[:, :-1]
    except Exception as error:
        raise Unusable(f"{source} does not read a text alone ({type(error).__name__}).") from error
    if not torch.allclose(first, second, rtol=1e-3, atol=1e-3):
        raise Unusable(f"{source} reads a text in both directions; expected a causal network.")


def _next_token_head(source: Source, bins: int, **options: Any) -> Any:
    """A head for `next_histograms`; of a language model its log-likelihood is taken over."""
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
    """Logits of the histograms after each next token, from what was read before it.

        logit_b(v) = a_b(v)·h + LIKELY·(b / (bins − 1))·log q(v),   q = softmax_v(l(v)·h)

    with a the rows of a token's bins and l that of its likelihood, which begins as the base's. So a
    scorer begins by thinking that what the base finds likely is good, and unlearns it where it is
    not so; without, it takes long to tell a token the base means from one it does not.

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


def _set_output(model: Any, head: nn.Module) -> Any:
    # What is no longer the input's embedding must not be tied to it when it is saved and loaded.
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

    Or to `bins` numbers, the logits of a histogram.

    A `source` that is a language model gives its backbone; the head is then new, unless it may not
    be `fresh`. `options` (dtype, attn_implementation, ...) go to transformers.

    Raises:
        as pretrained.network.
    """
    given = isinstance(source, PretrainedConfig)
    config: Any = source if given else pretrained.configuration(source, num_labels=bins)
    config.num_labels = bins
    # transformers puts a dropout of 0.1 before such heads; noise in a value that others bootstrap
    # from, or that is exponentiated, is a bias.
    config.classifier_dropout = 0.0
    auto = _scalar_class(config)
    if isinstance(source, PretrainedConfig):
        return _built(auto, config, **options)
    has_head = kinds.kind(source, config) in ("sequence", "token")
    new = HEADS if fresh and not has_head else ()
    return pretrained.network(auto, source, config=config, new=new, **options)


def vocabulary_head(source: Source, **options: Any) -> Any:
    """A causal language model, read as one number for every next token: [..., vocab].

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
