"""Load the scorers of a configuration."""

from pathlib import Path

import torch

from trimtab.config import CACHE_BYTES, GuidanceConfig, ScorerSpec
from trimtab.errors import ScorerLoadError
from trimtab.reasons import why
from trimtab.scorers import Scorer, family_class
from trimtab.scorers.loader import Loader
from trimtab.scorers.loader import tokenizer as read_tokenizer
from trimtab.scoring.backbones import Backbones
from trimtab.scoring.text import Detokenizer
from trimtab_models.checkpoint import ScorerInfo, read_info
from trimtab_models.files import Unusable, beside


def precision(config: GuidanceConfig, device: str, base: torch.dtype) -> torch.dtype:
    """The dtype of scorers on a type of device, beside a base of dtype `base`."""
    if config.scorer_dtype is not None:
        chosen: torch.dtype = getattr(torch, config.scorer_dtype)
        return chosen
    return torch.float32 if device == "cpu" else base


def load_scorers(
    config: GuidanceConfig,
    *,
    max_length: int,
    vocab_size: int,
    tokenizer: str | Detokenizer | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    model: str | Path | None = None,
    backbones: Backbones | None = None,
) -> dict[str, Scorer]:
    """Load every scorer of a configuration; composites are loaded last.

    max_length: longest prefix, in tokens. vocab_size: of the base.
    tokenizer: the base's, or its directory or hub name, for scorers that read text. Without it,
    networks are assumed to share it.
    model: the base's directory or hub name, for probes, which read its states.
    backbones: of the scorers that are loaded already; those with equal weights are shared.

    Raises:
        ScorerLoadError: a scorer cannot be loaded, or cannot be served exactly.
    """
    base = _base(tokenizer) if isinstance(tokenizer, str) else tokenizer
    specs = {name: _complete(name, spec) for name, spec in config.scorers.items()}
    share = _share(config.cache_bytes, specs)
    scorers: dict[str, Scorer] = {}
    backbones = Backbones() if backbones is None else backbones
    loader = Loader(base, max_length, vocab_size, share, dtype, device, scorers, model, backbones)
    for name, spec in sorted(specs.items(), key=lambda s: _class(s[1]).composes):
        try:
            scorers[name] = _loaded(_class(spec), spec, loader)
        except Exception as error:
            raise ScorerLoadError(f"scorer '{name}' cannot be loaded: {why(error)}") from error
    return scorers


def _loaded(family: type[Scorer], spec: ScorerSpec, loader: Loader) -> Scorer:
    scorer = family.load(spec, loader)
    if not isinstance(getattr(scorer, "info", None), ScorerInfo):
        raise ScorerLoadError(
            f"{family.__name__}.load returned no scorer with a ScorerInfo; call "
            "super().__init__(ScorerInfo(...)) in __init__"
        )
    return scorer


def precheck(config: GuidanceConfig) -> None:
    """Check the scorers' checkpoints before an engine starts.

    Raises:
        ScorerLoadError: a scorer cannot be loaded.
    """
    for name, configured in config.scorers.items():
        spec = _complete(name, configured)
        try:
            _class(spec).precheck(spec)
        except Exception as error:
            raise ScorerLoadError(f"scorer '{name}' cannot be loaded: {why(error)}") from error


def pool_bytes(config: GuidanceConfig) -> int:
    """Bytes of each prefix pool: all pools of a configuration share its cache_bytes.

    Raises:
        ScorerLoadError: a scorer's checkpoint cannot be read.
    """
    specs = {name: _complete(name, spec) for name, spec in config.scorers.items()}
    return _share(config.cache_bytes, specs)


def pool_networks(config: GuidanceConfig) -> list[str]:
    """Directory or hub name of the network of each prefix pool.

    Raises:
        ScorerLoadError: a scorer's checkpoint cannot be read.
    """
    specs = [_complete(name, spec) for name, spec in config.scorers.items()]
    paths = [[spec.path, spec.reference][: _class(spec).pools(spec)] for spec in specs]
    return [path for some in paths for path in some if path is not None]


def _share(cache_bytes: int | None, specs: dict[str, ScorerSpec]) -> int:
    pools = sum(_class(spec).pools(spec) for spec in specs.values())
    return (cache_bytes or CACHE_BYTES) // max(pools, 1)


def _class(spec: ScorerSpec) -> type[Scorer]:
    return family_class(spec.family or "head")


def _base(source: str) -> Detokenizer | None:
    try:
        base: Detokenizer | None = read_tokenizer(source)
    except Unusable as error:
        raise ScorerLoadError(f"the base's tokenizer cannot be used: {error}") from error
    return base


def _complete(name: str, spec: ScorerSpec) -> ScorerSpec:
    """The specification, with missing fields taken from the checkpoint."""
    try:
        if spec.family is not None and not family_class(spec.family).checkpointed:
            return spec
        info = read_info(spec.path)
    except Exception as error:
        raise ScorerLoadError(f"scorer '{name}' cannot be loaded: {why(error)}") from error
    reference = spec.reference
    if reference is None and info.reference is not None:
        reference = beside(spec.path, info.reference)
    return spec.model_copy(update={"family": spec.family or info.family, "reference": reference})
