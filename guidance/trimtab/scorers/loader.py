"""Loading that the families share: the base's tokenizer, memory, and reading of networks."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from trimtab.config import ScorerSpec
from trimtab.errors import ScorerLoadError
from trimtab.scoring import waves
from trimtab.scoring.attention import NAME as PREFIX_ATTENTION
from trimtab.scoring.backbone import Backbone
from trimtab.scoring.backbones import Backbones
from trimtab.scoring.cross import CrossBackbone
from trimtab.scoring.retokenise import Retokeniser
from trimtab.scoring.text import Detokenizer, Reader, template
from trimtab_models import checkpoint, classify, peft, pretrained, texts
from trimtab_models.checkpoint import Family, ScorerInfo

if TYPE_CHECKING:
    from trimtab.scorers.base import Scorer

CAUSAL_READS = ("text", "chat")
ALONE = ("vocabulary", "log_ratio")
"""Kinds of checkpoints whose heads read prefixes alone, without candidates."""


@dataclass(frozen=True)
class Loader:
    """What all scorers of one engine share when they are loaded.

    tokenizer: the base's; None if networks are assumed to share it. max_length: longest prefix, in
    tokens. vocab_size: of the base. pool_bytes: of each prefix pool. loaded: the scorers so far.
    base: directory or hub name of the base, if its states are at hand. backbones: those that later
    scorers may share.
    """

    tokenizer: Detokenizer | None
    max_length: int
    vocab_size: int
    pool_bytes: int
    dtype: torch.dtype
    device: torch.device | str
    loaded: Mapping[str, "Scorer"] = field(default_factory=dict)
    base: str | Path | None = None
    backbones: Backbones = field(default_factory=Backbones)

    def network(
        self, spec: ScorerSpec, family: Family
    ) -> tuple[ScorerInfo, Backbone | CrossBackbone]:
        """A network that scores candidates, with the base's tokenizer or with its own.

        Raises:
            ScorerLoadError: it cannot be served exactly.
            OSError, ValueError: it cannot be read, see trimtab_models.checkpoint.load.
        """
        own = self._own_tokenizer(spec.path)
        if own is None:
            return self.native(spec.path, family)
        model, info = self._load(spec.path, family)
        if info.ahead:
            raise ScorerLoadError(
                "it has a histogram for each token of its vocabulary, which is not the base's"
            )
        # A token of the base is rarely more than four of its own.
        window = min(texts.positions(model.config) or classify.UNBOUNDED, 4 * self.max_length)
        spec = spec.model_copy(update={"reads": spec.reads or info.reads})
        render = self.render(spec, own, CAUSAL_READS)
        return info, CrossBackbone(
            Backbone(model, **self._options(window)),
            Reader(self.decoder(), render),
            Retokeniser(own, rendered=render is not None),
            window,
        )

    def native(self, path: str, family: Family) -> tuple[ScorerInfo, Backbone]:
        """A network with the base's tokenizer; raises as `network`.

        Networks with equal weights share one backbone (scoring/backbones.py).
        """
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
                "must use this base's tokenizer, or include its own"
            )
        alone = info.ahead or family in ALONE
        return info, self.backbones.of(model, alone=alone, **self._options(self.max_length))

    def cast(self, model: Any) -> Any:
        """A network in the engine's precision."""
        # While transformers loads a network, it sets the process's default dtype, which concurrent
        # steps must not see: so networks are loaded in single precision, then cast.
        for parameter in model.parameters():
            parameter.data = parameter.data.to(self.dtype)
        return model

    def render(
        self, spec: ScorerSpec, own: Any, known: tuple[str, ...]
    ) -> Callable[[Any], str] | None:
        """The function that renders a scorer's prompts, None for unchanged prompts.

        Raises:
            ScorerLoadError: it does not support the specification's `reads`.
        """
        if spec.reads is not None and spec.reads not in known:
            raise ScorerLoadError(f"reads must be one of {', '.join(known)}, not {spec.reads}")
        render = template(own)
        if spec.reads == "chat" and render is None:
            raise ScorerLoadError("its tokenizer has no chat template, which reads=chat needs")
        return render if spec.reads in ("chat", None) else None

    def decoder(self) -> Detokenizer:
        """The base's tokenizer, for scorers that need texts or the ids of words.

        Raises:
            ScorerLoadError: there is none.
        """
        if self.tokenizer is None:
            raise ScorerLoadError("it needs the base's tokenizer, and there is none")
        return self.tokenizer

    def _tokens(self) -> int:
        """Number of the base's tokens that a text may contain: its vocabulary may be padded."""
        known: dict[str, int] = getattr(self.tokenizer, "get_vocab", dict)()
        return min(self.vocab_size, max(known.values()) + 1) if known else self.vocab_size

    def _load(self, path: str, family: Family) -> tuple[Any, ScorerInfo]:
        model, info = checkpoint.load(path, family=family, attn_implementation=PREFIX_ATTENTION)
        return self.cast(model), info

    def _options(self, max_length: int) -> dict[str, Any]:
        """Options of a backbone."""
        return {
            "max_length": max_length,
            "pool_bytes": self.pool_bytes,
            "max_candidates": waves.MAX_CANDIDATES,
            "device": self.device,
        }

    def _own_tokenizer(self, path: str) -> Any:
        """The tokenizer of a checkpoint if it has one that differs from the base's, else None."""
        if self.tokenizer is None:
            return None
        own = tokenizer(path)
        if own is None and peft.is_adapter(path):
            own = tokenizer(peft.base(path))
        if own is None:
            return None  # no tokenizer: the network was made for the base
        base: dict[str, int] = getattr(self.tokenizer, "get_vocab", dict)()
        return None if base and base.items() <= own.get_vocab().items() else own


def tokenizer(source: str) -> Any:
    """The tokenizer of a checkpoint; None if it has none, like a base served by ids only."""
    try:
        return pretrained.tokenizer(source)
    except FileNotFoundError:
        return None


def imported(path: str) -> Any:
    """The object named by "package.module:name", from this process's own code.

    Raises:
        ScorerLoadError: it cannot be imported.
    """
    module, _, attribute = path.partition(":")
    try:
        named = getattr(importlib.import_module(module), attribute, None)
    except KeyboardInterrupt:
        raise
    except ModuleNotFoundError as error:
        raise ScorerLoadError(
            f"{path} cannot be imported: there is no module {error.name}; install it, or put its "
            "directory on PYTHONPATH."
        ) from error
    except BaseException as error:  # a module may even raise SystemExit
        raise ScorerLoadError(f"{path} cannot be imported ({type(error).__name__}).") from error
    if named is None:
        raise ScorerLoadError(f"{path} cannot be imported: {module} has no {attribute}.")
    return named
