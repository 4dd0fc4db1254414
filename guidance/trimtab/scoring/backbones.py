"""The backbones of an engine's scorers: networks with equal weights share one, under several heads.

Two networks are equal if they are of one class, with equal settings, and all their tensors have
equal elements. Then the first one's network and prefix pool serve both, so a step forwards their
rows once (common.py), and a prefix is read once. The second one's own weights are dropped.
"""

from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from trimtab.scoring.backbone import Backbone
from trimtab_models.networks import split

OF_HEADS = {
    *("architectures", "id2label", "label2id", "num_labels", "problem_type", "classifier_dropout"),
    *("tie_word_embeddings", "trimtab"),
    *("transformers_version", "dtype", "_name_or_path"),  # of the file
}
"""Settings that a network's hidden states do not depend on."""


class Backbones:
    """The backbones that are in use; one that no scorer uses any more is let go."""

    def __init__(self) -> None:
        self._kinds: WeakKeyDictionary[Backbone, bool] = WeakKeyDictionary()
        self._lock = Lock()  # scorers are loaded in threads

    def of(self, model: PreTrainedModel, *, alone: bool, **options: Any) -> Backbone:
        """A backbone for a model's head, shared if a known one is equal and of the same kind.

        alone: whether the head reads prefixes alone, without candidates. Backbones of both kinds
        keep different tokens, so they are not shared. options: of a new Backbone.

        Raises:
            ScorerLoadError: as Backbone.
        """
        network, _ = split(model)
        with self._lock:
            equal = (
                known
                for known, kind in self._kinds.items()
                if kind == alone and same(known.network, network)
            )
            known = next(equal, None)
            backbone = Backbone(model, **options) if known is None else known.under(model)
            self._kinds[backbone] = alone
            return backbone


def same(network: PreTrainedModel, other: PreTrainedModel) -> bool:
    """Whether two networks give equal hidden states for any tokens."""
    if type(network) is not type(other) or _settings(network) != _settings(other):
        return False
    own, others = _tensors(network), _tensors(other)
    return own.keys() == others.keys() and all(_equal(own[name], others[name]) for name in own)


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b.to(a.device))


def _settings(network: PreTrainedModel) -> dict[str, Any]:
    settings: dict[str, Any] = network.config.to_dict()
    return {name: value for name, value in settings.items() if name not in OF_HEADS}


def _tensors(network: PreTrainedModel) -> dict[str, Tensor]:
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}
