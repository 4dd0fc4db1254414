"""From a configuration to scorers, ready to score."""

import importlib
from collections.abc import Mapping

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from trimtab.attention import NAME as PREFIX_ATTENTION
from trimtab.backbone import Backbone
from trimtab.config import GuidanceConfig, ScorerSpec
from trimtab.errors import ScorerLoadError
from trimtab.params import MAX_K
from trimtab.scorers import (
    CompositeScorer,
    FunctionScorer,
    HeadScorer,
    LogRatioScorer,
    Scorer,
    VocabularyScorer,
)
from trimtab_models.checkpoint import Family, load, read_info


def load_scorers(
    config: GuidanceConfig,
    *,
    max_length: int,
    vocab_size: int,
    tokenizer: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> dict[str, Scorer]:
    """Load every scorer of a configuration; composites last, out of the others.

    max_length: longest prefix, in tokens. vocab_size: of the base, which scorers must share.
    tokenizer: the base's, by directory or hub name, for functions that read text.

    Raises:
        ScorerLoadError: one cannot be loaded, or cannot be served exactly.
    """
    families = {name: _family(name, spec) for name, spec in config.scorers.items()}
    networks = sum(
        1 + (spec.reference is not None)
        for name, spec in config.scorers.items()
        if families[name] in ("head", "vocabulary", "log_ratio")
    )
    pool_bytes = config.cache_bytes // max(networks, 1)

    def network(path: str, family: Family) -> HeadScorer | VocabularyScorer:
        model, info = load(path, family=family, dtype=dtype, attn_implementation=PREFIX_ATTENTION)
        rows = model.get_input_embeddings().num_embeddings
        if rows < vocab_size:
            raise ScorerLoadError(
                f"it embeds {rows} tokens and the base has {vocab_size}; a {family} scorer must "
                "have been made for this base's tokenizer"
            )
        backbone = Backbone(
            model,
            max_length=max_length,
            pool_bytes=pool_bytes,
            max_candidates=MAX_K,
            device=device,
        )
        return HeadScorer(info, backbone) if family == "head" else VocabularyScorer(info, backbone)

    scorers: dict[str, Scorer] = {}
    for name, spec in sorted(config.scorers.items(), key=lambda s: families[s[0]] == "composite"):
        try:
            match families[name]:
                case "function":
                    scorers[name] = _function(spec, tokenizer)
                case "composite":
                    scorers[name] = _composite(spec, scorers)
                case "log_ratio":
                    tuned = network(spec.path, "log_ratio")
                    if spec.alpha is not None:
                        tuned.info = tuned.info.model_copy(update={"alpha": spec.alpha})
                    untuned = network(spec.reference, "log_ratio") if spec.reference else None
                    scorers[name] = LogRatioScorer(tuned, untuned)  # type: ignore[arg-type]
                case "head" | "vocabulary" as family:
                    scorers[name] = network(spec.path, family)
        except Exception as error:
            raise ScorerLoadError(f"scorer '{name}' cannot be loaded: {error}") from error
    return scorers


def _family(name: str, spec: ScorerSpec) -> str:
    if spec.family is not None:
        return spec.family
    try:
        return read_info(spec.path).family
    except Exception as error:
        raise ScorerLoadError(
            f"scorer '{name}' cannot be loaded: {spec.path} is neither a checkpoint directory nor "
            "a hub name that can be reached."
        ) from error


def _function(spec: ScorerSpec, tokenizer: str | None) -> FunctionScorer:
    module, colon, attribute = spec.path.partition(":")
    if not colon:
        raise ScorerLoadError("a function scorer's path must read module:function")
    function = getattr(importlib.import_module(module), attribute)
    reader: PreTrainedTokenizerBase | None = None
    if spec.reads == "text":
        if tokenizer is None:
            raise ScorerLoadError("a function that reads text needs the base's tokenizer")
        reader = AutoTokenizer.from_pretrained(tokenizer)
    return FunctionScorer(function, reader)


def _composite(spec: ScorerSpec, scorers: Mapping[str, Scorer]) -> CompositeScorer:
    parts: dict[str, tuple[Scorer, float]] = {}
    for part in spec.path.split("+"):
        name, _, weight = part.strip().partition(":")
        if name not in scorers or isinstance(scorers[name], CompositeScorer):
            raise ScorerLoadError(f"its part '{name}' is not among the other scorers")
        parts[name] = (scorers[name], float(weight or 1))
    return CompositeScorer(parts)
