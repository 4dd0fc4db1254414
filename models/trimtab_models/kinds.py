"""What kind of network a checkpoint holds, by what it says, and which families each kind serves."""

from typing import Literal

import transformers
from transformers import PretrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
)

from trimtab_models.files import Unusable

Kind = Literal["language", "sequence", "token", "other"]

_CLASSES: dict[Kind, frozenset[str]] = {
    "language": frozenset(map(str, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())),
    "sequence": frozenset(map(str, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.values())),
    "token": frozenset(map(str, MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES.values())),
}
_NAMES: dict[Kind, str] = {
    "language": "a language model",
    "sequence": "a sequence classifier",
    "token": "a token classifier",
    "other": "another network",
}
_HEADS = "a head (*ForTokenClassification, *ForSequenceClassification)"
_SERVES: dict[str, tuple[tuple[Kind, ...], str]] = {
    "head": (("token", "sequence"), f"lacks the weights of {_HEADS}"),
    "distribution": (("token", "sequence"), f"lacks the weights of {_HEADS}"),
    "vocabulary": (("language",), "lacks an output over the vocabulary (*ForCausalLM)"),
    "log_ratio": (("language",), "lacks an output over the vocabulary (*ForCausalLM)"),
    "text": (("sequence",), "has no classifier of texts (*ForSequenceClassification)"),
}
"""By family: the kinds that serve it, and what the others lack."""


def named(config: PretrainedConfig) -> str | None:
    """The class that a configuration names, if it names one."""
    architectures = getattr(config, "architectures", None)
    return str(architectures[0]) if isinstance(architectures, list) and architectures else None


def kind(source: object, config: PretrainedConfig) -> Kind | None:
    """What a configuration says its network is; None if it says nothing, and weights must tell.

    Raises:
        Unusable: a class that transformers does not have, so the checkpoint's own code.
    """
    name = named(config)
    if name is None:
        return None
    found = next((known for known, names in _CLASSES.items() if name in names), None)
    if found is None and name not in dir(transformers):
        raise Unusable(
            f"{source}: its config.json names a class that transformers does not have ({name}); "
            "code of a checkpoint is never run."
        )
    return found or "other"


def check(source: object, family: str, found: Kind | None, name: str | None) -> None:
    """Refuse a checkpoint of a kind that a family is not served by.

    Raises:
        Unusable: it is one.
    """
    kinds, lack = _SERVES[family]
    if found is None or found in kinds:
        return
    hint = ""
    if found == "language" and family in ("head", "distribution"):
        hint = "; if it is a scorer, say which: family=log_ratio or family=vocabulary"
    raise Unusable(f"{source} is {_NAMES[found]} ({name}), and {lack}{hint}.")
