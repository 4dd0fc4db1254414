"""From a configuration to scorers, ready to score."""

import importlib
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import AutoTokenizer

from trimtab.attention import NAME as PREFIX_ATTENTION
from trimtab.backbone import Backbone
from trimtab.config import GuidanceConfig, ScorerSpec
from trimtab.errors import ScorerLoadError
from trimtab.params import MAX_K
from trimtab.scorers import (
    CompositeScorer,
    DistributionScorer,
    FunctionScorer,
    HeadScorer,
    LogRatioScorer,
    Scorer,
    VocabularyScorer,
)
from trimtab.scorers.base import Decodes
from trimtab_models.checkpoint import Family, ScorerInfo, load, read_info


def load_scorers(
    config: GuidanceConfig,
    *,
    max_length: int,
    vocab_size: int,
    tokenizer: str | Decodes | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> dict[str, Scorer]:
    """Load every scorer of a configuration; composites last, out of the others.

    max_length: longest prefix, in tokens. vocab_size: of the base, which scorers must share.
    tokenizer: the base's, by directory or hub name, or what else makes text of its tokens; for
        functions that read text.

    Raises:
        ScorerLoadError: one cannot be loaded, or cannot be served exactly.
    """
    specs = {name: _complete(name, spec) for name, spec in config.scorers.items()}
    networks = [s for s in specs.values() if s.family not in ("function", "composite")]
    pairs = sum(spec.reference is not None for spec in networks)
    pool_bytes = config.cache_bytes // max(len(networks) + pairs, 1)

    def network(path: str, family: Family) -> tuple[ScorerInfo, Backbone]:
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
        return info, backbone

    scorers: dict[str, Scorer] = {}
    for name, spec in sorted(specs.items(), key=lambda s: s[1].family == "composite"):
        try:
            match spec.family:
                case "function":
                    scorers[name] = _function(spec, tokenizer)
                case "composite":
                    scorers[name] = _composite(spec, scorers)
                case "log_ratio":
                    tuned = VocabularyScorer(*network(spec.path, "log_ratio"))
                    if spec.alpha is not None:
                        tuned.info = tuned.info.model_copy(update={"alpha": spec.alpha})
                    untuned = None
                    if spec.reference is not None:
                        untuned = VocabularyScorer(*network(spec.reference, "log_ratio"))
                    scorers[name] = LogRatioScorer(tuned, untuned)
                case "head":
                    scorers[name] = HeadScorer(*network(spec.path, "head"))
                case "distribution":
                    scorers[name] = DistributionScorer(*network(spec.path, "distribution"))
                case "vocabulary":
                    scorers[name] = VocabularyScorer(*network(spec.path, "vocabulary"))
        except Exception as error:
            raise ScorerLoadError(f"scorer '{name}' cannot be loaded: {error}") from error
    return scorers


def _complete(name: str, spec: ScorerSpec) -> ScorerSpec:
    """The same, with what the checkpoint says where the specification is silent."""
    if spec.family in ("function", "composite"):
        return spec
    try:
        info = read_info(spec.path)
    except Exception as error:
        neither = "is neither a checkpoint directory nor a hub name that can be reached."
        reason = str(error) if Path(spec.path).is_dir() else f"{spec.path} {neither}"
        raise ScorerLoadError(f"scorer '{name}' cannot be loaded: {reason}") from error
    family, reference = spec.family or info.family, spec.reference
    if family == "log_ratio" and reference is None and info.reference is not None:
        beside = Path(spec.path) / info.reference  # an absolute path stays what it is
        reference = str(beside) if beside.is_dir() else info.reference
    return spec.model_copy(update={"family": family, "reference": reference})


def _function(spec: ScorerSpec, tokenizer: str | Decodes | None) -> FunctionScorer:
    module, colon, attribute = spec.path.partition(":")
    if not colon:
        raise ScorerLoadError("a function scorer's path must read module:function")
    function = getattr(importlib.import_module(module), attribute)
    reader: Decodes | None = None
    if spec.reads == "text":
        if tokenizer is None:
            raise ScorerLoadError("a function that reads text needs the base's tokenizer")
        reader = (
            AutoTokenizer.from_pretrained(tokenizer) if isinstance(tokenizer, str) else tokenizer
        )
    return FunctionScorer(function, reader)


def _composite(spec: ScorerSpec, scorers: Mapping[str, Scorer]) -> CompositeScorer:
    parts: dict[str, tuple[Scorer, float]] = {}
    for part in spec.path.split("+"):
        name, _, weight = part.strip().partition(":")
        if name not in scorers or isinstance(scorers[name], CompositeScorer):
            raise ScorerLoadError(f"its part '{name}' is not among the other scorers")
        parts[name] = (scorers[name], float(weight or 1))
    return CompositeScorer(parts)
