"""From a configuration to scorers, ready to score."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trimtab.attention import NAME as PREFIX_ATTENTION
from trimtab.backbone import Backbone
from trimtab.config import GuidanceConfig, ScorerSpec
from trimtab.cross import CrossBackbone
from trimtab.errors import ScorerLoadError
from trimtab.params import MAX_K
from trimtab.reader import Decoder, Reader, template
from trimtab.reasons import why
from trimtab.retokenise import Retokeniser
from trimtab.scorers import (
    CompositeScorer,
    DistributionScorer,
    FunctionScorer,
    HeadScorer,
    LogRatioScorer,
    Scorer,
    TextScorer,
    VocabularyScorer,
)
from trimtab_models import adapters, checkpoint, classify, pretrained
from trimtab_models.checkpoint import Family, ScorerInfo, load, read_info
from trimtab_models.files import Unusable

TEXT_READS = ("text", "chat", "answer", "pair")
CAUSAL_READS = ("text", "chat")


def load_scorers(
    config: GuidanceConfig,
    *,
    max_length: int,
    vocab_size: int,
    tokenizer: str | Decoder | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> dict[str, Scorer]:
    """Load every scorer of a configuration; composites last, out of the others.

    max_length: longest prefix, in tokens. vocab_size: of the base.
    tokenizer: the base's, or its directory or hub name, for scorers that read text. Without it,
    networks are taken to share it.

    Raises:
        ScorerLoadError: one cannot be loaded, or cannot be served exactly.
    """
    base = _base(tokenizer) if isinstance(tokenizer, str) else tokenizer
    specs = {name: _complete(name, spec) for name, spec in config.scorers.items()}
    networks = [s for s in specs.values() if s.family not in ("function", "text", "composite")]
    pairs = sum(spec.reference is not None for spec in networks)
    loader = _Loader(
        base,
        max_length,
        vocab_size,
        config.cache_bytes // max(len(networks) + pairs, 1),
        dtype,
        device,
    )
    scorers: dict[str, Scorer] = {}
    for name, spec in sorted(specs.items(), key=lambda s: s[1].family == "composite"):
        try:
            scorers[name] = loader.scorer(spec, scorers)
        except Exception as error:
            raise ScorerLoadError(f"scorer '{name}' cannot be loaded: {why(error)}") from error
    return scorers


def vet(config: GuidanceConfig) -> None:
    """Refuse what is wrong with scorers' checkpoints before an engine starts for them.

    Raises:
        ScorerLoadError: one of them cannot be loaded.
    """
    for name, given in config.scorers.items():
        spec = _complete(name, given)
        try:
            match spec.family:
                case "function" | "composite" | None:
                    pass
                case "text":
                    classify.vet(spec.path, spec.label)
                case family:
                    for path in filter(None, (spec.path, spec.reference)):
                        _tokenizer(path)
                        checkpoint.vet(path, family)
        except Exception as error:
            raise ScorerLoadError(f"scorer '{name}' cannot be loaded: {why(error)}") from error


@dataclass(frozen=True)
class _Loader:
    """What every scorer of one engine is loaded for."""

    tokenizer: Any
    max_length: int
    vocab_size: int
    pool_bytes: int
    dtype: torch.dtype
    device: torch.device | str

    def scorer(self, spec: ScorerSpec, others: Mapping[str, Scorer]) -> Scorer:
        """One scorer; a composite is made of `others`."""
        scorer: Scorer
        match spec.family:
            case "function":
                scorer = self._function(spec)
            case "composite":
                scorer = _composite(spec, others)
            case "text":
                scorer = self._text(spec)
            case "log_ratio":
                scorer = self._log_ratio(spec)
            case "distribution":
                scorer = DistributionScorer(*self._network(spec, "distribution"))
            case "vocabulary":
                scorer = VocabularyScorer(*self._native(spec.path, "vocabulary"))
            case _:
                scorer = HeadScorer(*self._network(spec, "head"))
        return scorer

    def _network(
        self, spec: ScorerSpec, family: Family
    ) -> tuple[ScorerInfo, Backbone | CrossBackbone]:
        """A network that scores candidates, whether its tokenizer is the base's or not."""
        own = self._own_tokenizer(spec.path)
        if own is None:
            return self._native(spec.path, family)
        model, info = self._load(spec.path, family)
        if info.ahead:
            raise ScorerLoadError(
                "it has a histogram for each token of its vocabulary, which is not the base's"
            )
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        # A token of the base is seldom four of its own.
        window = min(positions or classify.UNBOUNDED, 4 * self.max_length)
        render = self._render(spec, own, CAUSAL_READS)
        return info, CrossBackbone(
            self._backbone(model, window),
            Reader(self.tokenizer, render),
            Retokeniser(own, rendered=render is not None),
            window,
        )

    def _native(self, path: str, family: Family) -> tuple[ScorerInfo, Backbone]:
        """A network with the base's tokenizer."""
        if self._own_tokenizer(path) is not None:
            raise ScorerLoadError(
                f"its tokenizer is not the base's, which a {family} scorer must share; families "
                "head, distribution and text may have their own"
            )
        model, info = self._load(path, family)
        rows = model.get_input_embeddings().num_embeddings
        if rows < self._tokens():
            raise ScorerLoadError(
                f"it embeds {rows} tokens and the base has {self._tokens()}; a {family} scorer "
                "must have been made for this base's tokenizer, or bring its own"
            )
        return info, self._backbone(model, self.max_length)

    def _tokens(self) -> int:
        """How many tokens of the base a text may hold: its vocabulary may be padded with more."""
        known: dict[str, int] = getattr(self.tokenizer, "get_vocab", dict)()
        return min(self.vocab_size, max(known.values()) + 1) if known else self.vocab_size

    def _load(self, path: str, family: Family) -> tuple[Any, ScorerInfo]:
        model, info = load(path, family=family, attn_implementation=PREFIX_ATTENTION)
        return self._cast(model), info

    def _cast(self, model: Any) -> Any:
        # transformers makes what it loads the process's default dtype for a while, which steps
        # that go on meanwhile must not see: so all is loaded in single precision.
        for parameter in model.parameters():
            parameter.data = parameter.data.to(self.dtype)
        return model

    def _backbone(self, model: Any, max_length: int) -> Backbone:
        return Backbone(
            model,
            max_length=max_length,
            pool_bytes=self.pool_bytes,
            max_candidates=MAX_K,
            device=self.device,
        )

    def _own_tokenizer(self, path: str) -> Any:
        """The tokenizer of a checkpoint if it has one that differs from the base's, else None."""
        if self.tokenizer is None:
            return None
        own = _tokenizer(path)
        if own is None and adapters.is_adapter(path):
            own = _tokenizer(adapters.base(path))
        if own is None:
            return None  # a network alone: made for the base
        base: dict[str, int] = getattr(self.tokenizer, "get_vocab", dict)()
        return None if base and base.items() <= own.get_vocab().items() else own

    def _render(
        self, spec: ScorerSpec, own: Any, known: tuple[str, ...]
    ) -> Callable[[Any], str] | None:
        """How the scorer wants prompts written, None for as they are."""
        if spec.reads is not None and spec.reads not in known:
            raise ScorerLoadError(f"reads is one of {', '.join(known)}, not {spec.reads}")
        render = template(own)
        if spec.reads == "chat" and render is None:
            raise ScorerLoadError("its tokenizer has no chat template, which reads=chat needs")
        return render if spec.reads in ("chat", None) else None

    def _text(self, spec: ScorerSpec) -> TextScorer:
        classifier = classify.load(spec.path, spec.label, dtype=torch.float32)
        render = self._render(spec, classifier.tokenizer, TEXT_READS)
        self._cast(classifier.model).to(self.device)
        reads: Any = spec.reads or ("chat" if render is not None else "text")
        info = ScorerInfo(objective="text classifier")
        return TextScorer(info, classifier, Reader(self._reading(), render), reads)

    def _log_ratio(self, spec: ScorerSpec) -> LogRatioScorer:
        tuned = VocabularyScorer(*self._native(spec.path, "log_ratio"))
        if spec.alpha is not None:
            tuned.info = tuned.info.model_copy(update={"alpha": spec.alpha})
        untuned = None
        if spec.reference is not None:
            untuned = VocabularyScorer(*self._native(spec.reference, "log_ratio"))
        return LogRatioScorer(tuned, untuned)

    def _function(self, spec: ScorerSpec) -> FunctionScorer:
        module, colon, attribute = spec.path.partition(":")
        if not colon:
            raise ScorerLoadError("a function scorer's path must read module:function")
        if spec.reads not in (None, "ids", "text"):
            raise ScorerLoadError(f"reads is one of ids, text, not {spec.reads}")
        try:
            function = getattr(importlib.import_module(module), attribute)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a module may even exit
            raise ScorerLoadError(
                f"{spec.path} cannot be imported ({type(error).__name__})."
            ) from error
        if not callable(function):
            raise ScorerLoadError(f"{spec.path} is not a function.")
        return FunctionScorer(function, self._reading() if spec.reads == "text" else None)

    def _reading(self) -> Any:
        if self.tokenizer is None:
            raise ScorerLoadError("a scorer that reads text needs the base's tokenizer")
        return self.tokenizer


def _tokenizer(source: str) -> Any:
    """The tokenizer of a checkpoint; None where it has none, as a base served by ids alone."""
    try:
        return pretrained.tokenizer(source)
    except FileNotFoundError:
        return None


def _base(source: str) -> Any:
    try:
        return _tokenizer(source)
    except Unusable as error:
        raise ScorerLoadError(f"the base's tokenizer cannot be used: {error}") from error


def _complete(name: str, spec: ScorerSpec) -> ScorerSpec:
    """The same, with what the checkpoint says where the specification is silent."""
    if spec.family in ("function", "text", "composite"):
        return spec
    try:
        info = read_info(spec.path)
    except Exception as error:
        raise ScorerLoadError(f"scorer '{name}' cannot be loaded: {why(error)}") from error
    family, reference = spec.family or info.family, spec.reference
    if family == "log_ratio" and reference is None and info.reference is not None:
        beside = Path(spec.path) / info.reference  # an absolute path stays what it is
        reference = str(beside) if beside.is_dir() else info.reference
    return spec.model_copy(update={"family": family, "reference": reference})


def _composite(spec: ScorerSpec, scorers: Mapping[str, Scorer]) -> CompositeScorer:
    parts: dict[str, tuple[Scorer, float]] = {}
    for part in spec.path.split("+"):
        name, _, weight = part.strip().partition(":")
        if name not in scorers or isinstance(scorers[name], CompositeScorer):
            raise ScorerLoadError(f"its part '{name}' is not among the other scorers")
        try:
            parts[name] = (scorers[name], float(weight or 1))
        except ValueError:
            raise ScorerLoadError(f"the weight of its part '{name}' is not a number") from None
    return CompositeScorer(parts)
