"""Scorer networks: any causal backbone of transformers with a scalar or a vocabulary head.

They are plain transformers classes, so that transformers alone can load what was trained:
a scalar head is a `*ForTokenClassification` with one label (a value for every prefix), or a
`*ForSequenceClassification` for the families that have no other (OPT); a vocabulary head is a
`*ForCausalLM` whose logits are read as Q(prefix, ·) or as log π_r(· | prefix).
"""

from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING

Source: TypeAlias = str | Path | PretrainedConfig
"""A checkpoint directory, a hub name, or a configuration (which gives random weights)."""


def _scalar_class(config: PretrainedConfig) -> Any:
    if type(config) in MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING:
        return AutoModelForTokenClassification
    return AutoModelForSequenceClassification


def _build(auto: Any, source: Source, **options: Any) -> Any:
    if isinstance(source, PretrainedConfig):
        dtype = options.pop("dtype", torch.float32)
        return auto.from_config(source, **options).to(dtype).eval()
    # from_pretrained gives models in evaluation mode already.
    return auto.from_pretrained(str(source), **options)


def scalar_head(source: Source, **options: Any) -> Any:
    """A causal backbone with a linear head to one number: V(x) = w·h(x) + b for each prefix x.

    A `source` that is a language model gives its backbone; the head is then new.
    `options` (dtype, attn_implementation, ...) go to transformers.
    """
    config = (
        source
        if isinstance(source, PretrainedConfig)
        else AutoConfig.from_pretrained(str(source), num_labels=1)
    )
    config.num_labels = 1
    if not isinstance(source, PretrainedConfig):
        options["config"] = config
    return _build(_scalar_class(config), source, **options)


def vocabulary_head(source: Source, **options: Any) -> Any:
    """A causal language model, read as one number for every next token: [..., vocab]."""
    return _build(AutoModelForCausalLM, source, **options)


def split(model: PreTrainedModel) -> tuple[PreTrainedModel, nn.Module]:
    """The backbone and the head of a scorer network.

    head(backbone(input_ids=…, position_ids=…).last_hidden_state) is the network's output:
    [..., 1] for a scalar head, [..., vocab] for a vocabulary head.
    """
    for name in ("score", "classifier"):
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
