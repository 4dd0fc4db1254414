"""The kind of network that a checkpoint's configuration names, and the families each can serve."""

from typing import Literal

import transformers
from transformers import PretrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
)

from trimtab_models.files import Unusable

Kind = Literal["language", "sequence", "token", "probe", "other"]

_CLASSES: dict[Kind, frozenset[str]] = {
    "language": frozenset(map(str, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())),
    "sequence": frozenset(map(str, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.values())),
    "token": frozenset(map(str, MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES.values())),
    "probe": frozenset({"Probe"}),
}
_NAMES: dict[Kind, str] = {
    "language": "a language model",
    "sequence": "a sequence classifier",
    "token": "a token classifier",
    "probe": "a probe of a base's states",
    "other": "another network",
}
_HEADS = "a head (*ForTokenClassification, *ForSequenceClassification)"
_SERVES: dict[str, tuple[tuple[Kind, ...], str]] = {
    "head": (("token", "sequence"), f"lacks the weights of {_HEADS}"),
    "distribution": (("token", "sequence"), f"lacks the weights of {_HEADS}"),
    "vocabulary": (("language",), "lacks an output over the vocabulary (*ForCausalLM)"),
    "log_ratio": (("language",), "lacks an output over the vocabulary (*ForCausalLM)"),
    "text": (("sequence",), "has no classifier of texts (*ForSequenceClassification)"),
    "text with a delimiter": (("token", "sequence"), f"lacks {_HEADS}"),
    "probe": (("probe",), "is no probe, which `trimtab train --set probe.rank=16` makes"),
}
"""For each family: the kinds that can serve it, and what the others lack."""


def named(config: PretrainedConfig) -> str | None:
    """The class that a configuration names; None if it names none."""
    architectures = getattr(config, "architectures", None)
    return str(architectures[0]) if isinstance(architectures, list) and architectures else None


def kind(source: object, config: PretrainedConfig) -> Kind | None:
    """The kind of network that a configuration names; None if it names no class.

    Raises:
        Unusable: transformers does not have the class, so it is the checkpoint's own code.
    """
    name = named(config)
    if name is None:
        return None
    known = next((kind for kind, names in _CLASSES.items() if name in names), None)
    if known is None and name not in dir(transformers):
        raise Unusable(
            f"{source}: its config.json names a class that transformers does not have ({name}); "
            "code of a checkpoint is never run."
        )
    return known or "other"


def check(source: object, family: str, network: Kind | None, name: str | None) -> None:
    """Check that a kind of network can serve a family.

    Raises:
        Unusable: it cannot.
    """
    kinds, lack = _SERVES[family]
    if network is None or network in kinds:
        return
    hint = ""
    if network == "language" and family in ("head", "distribution"):
        hint = "; if it is a scorer, set family=log_ratio or family=vocabulary"
    raise Unusable(f"{source} is {_NAMES[network]} ({name}), and {lack}{hint}.")
