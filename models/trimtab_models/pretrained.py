"""The one way in for transformers' configurations, tokenizers and networks.

Nothing of a checkpoint is run, nobody is asked anything, no weight is made up, and whatever is
wrong becomes one line of ours. transformers itself asks on standard input whether to run a
tokenizer's code, and initialises missing weights at random.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.tokenization_auto import tokenizer_class_from_name
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from trimtab_models import kinds
from trimtab_models.files import Unusable, check_weights, listed, look, read_json

CONFIG = "config.json"
ADAPTER = "adapter_config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
VOCABULARIES = (
    *(TOKENIZER_CONFIG, "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt"),
    *("spiece.model", "sentencepiece.bpe.model", "spm.model", "tekken.json"),
)
"""A checkpoint with any of these has a tokenizer."""
BUFFERS = re.compile(r"(^|\.)(masked_bias|position_ids|inv_freq)$")
"""Names of what older releases saved although nobody trained it."""


def file(source: str | Path, name: str) -> Path | None:
    """A file of a checkpoint; None if it has none of that name.

    Raises:
        FileNotFoundError: there is no such checkpoint, or the hub cannot be reached.
        Unusable: a file of it is not to be opened, see files.look.
    """
    top = Path(source)
    if top.is_dir():
        look(top)
        return top / name if (top / name).is_file() else None
    try:
        found = cached_file(str(source), name, _raise_exceptions_for_missing_entries=False)
    except Exception as error:
        raise _nowhere(source) from error
    return None if found is None else Path(found)


def configuration(source: str | Path, **overrides: Any) -> Any:
    """The configuration of a checkpoint.

    Raises:
        FileNotFoundError: it has none, or there is no such checkpoint.
        Unusable: it is damaged, or of a network that transformers does not have.
    """
    path = file(source, CONFIG)
    if path is None and not Path(source).is_dir():
        raise _nowhere(source)
    if path is None:
        raise FileNotFoundError(f"{source} has no {CONFIG}; expected a checkpoint of transformers.")
    content = read_json(path)
    model_type = content.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        code = " It brings code of its own, which is never run." if "auto_map" in content else ""
        raise Unusable(
            f"{source}: the model_type in its {CONFIG} is not one that transformers has.{code}"
        )
    if _names_code(content):
        raise Unusable(f"{source}: its {CONFIG} asks for code from elsewhere, which is never run.")
    try:
        with _quiet():
            return AutoConfig.from_pretrained(str(source), trust_remote_code=False, **overrides)
    except Exception as error:
        raise Unusable(
            f"{source}: its {CONFIG} does not fit a {model_type} network ({type(error).__name__})."
        ) from error


def tokenizer(source: str | Path, **options: Any) -> Any:
    """The tokenizer of a checkpoint.

    Raises:
        FileNotFoundError: it has none, or there is no such checkpoint.
        Unusable: it is damaged, or needs code of its own.
    """
    if not any(file(source, name) for name in VOCABULARIES):
        raise FileNotFoundError(f"{source} has no tokenizer.")
    path = file(source, TOKENIZER_CONFIG)
    content = {} if path is None else read_json(path)
    named = content.get("tokenizer_class")
    own = isinstance(named, str) and tokenizer_class_from_name(named) is not None
    if content.get("auto_map") and not own:
        raise Unusable(f"{source}: its tokenizer needs code of its own, which is never run.")
    try:
        with _quiet():
            return AutoTokenizer.from_pretrained(str(source), trust_remote_code=False, **options)
    except Exception as error:
        raise Unusable(
            f"{source}: its tokenizer cannot be read ({type(error).__name__})."
        ) from error


def network(
    auto: Any,
    source: str | Path,
    *,
    config: Any = None,
    new: Collection[str] = (),
    **options: Any,
) -> Any:
    """A network with all of its weights, in evaluation mode.

    Args:
        auto: one of transformers' AutoModelFor….
        source: a directory or hub name.
        config: its configuration, if it was changed.
        new: weights, or modules of the network, that may be made up because they will be trained
            or replaced.
        options: of from_pretrained (dtype, attn_implementation, ...).

    Raises:
        FileNotFoundError: there is no such checkpoint, or no safetensors in it.
        Unusable: it is damaged, quantised, of another kind, or its weights are not those of
            the network.
    """
    if file(source, ADAPTER) is not None:
        raise Unusable(f"{source} is an adapter; expected a whole network. Merge it first.")
    found_config: PretrainedConfig = configuration(source) if config is None else config
    if type(found_config) not in auto._model_mapping:
        wanted = auto.__name__.removeprefix("AutoModel")
        raise Unusable(f"{source}: transformers has no {found_config.model_type} network {wanted}.")
    if getattr(found_config, "quantization_config", None):
        raise Unusable(f"{source}: its weights are quantised; expected plain ones.")
    if Path(source).is_dir():
        check_weights(Path(source))
    try:
        with _quiet():
            model, report = auto.from_pretrained(
                str(source),
                config=found_config,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, by name
                **options,
            )
    except Exception as error:
        raise Unusable(
            f"{source}: its weights are damaged, or do not fit a {found_config.model_type} network "
            f"({type(error).__name__})."
        ) from error
    _refuse_made_up(source, model, report, new)
    _refuse_left_out(source, model, report["unexpected_keys"])
    return model


def _nowhere(source: str | Path) -> FileNotFoundError:
    return FileNotFoundError(
        f"{source} is neither a checkpoint directory nor a hub name that can be reached."
    )


def _refuse_made_up(
    source: str | Path, model: PreTrainedModel, report: Mapping[str, Any], new: Collection[str]
) -> None:
    """Every weight of the network must come from the checkpoint."""

    def made_up(names: Collection[str]) -> list[str]:
        return sorted(n for n in names if n not in new and n.partition(".")[0] not in new)

    name = type(model).__name__
    if missing := made_up(report["missing_keys"]):
        raise Unusable(f"{source} lacks the weights {listed(missing)} of a {name}.")
    if wrong := made_up([key for key, *_ in report["mismatched_keys"]]):
        shapes = {key: (list(ours), list(own)) for key, ours, own in report["mismatched_keys"]}
        there, expected = shapes[wrong[0]]
        raise Unusable(
            f"{source}: the weights {listed(wrong)} do not fit a {name} ({there} in the file, "
            f"{expected} expected)."
        )


def _refuse_left_out(source: str | Path, model: PreTrainedModel, keys: Collection[str]) -> None:
    """What a checkpoint holds must count, or else its configuration is that of another network.

    Heads for other tasks may be left over, and a pooler, if the configuration says what the
    checkpoint is; weights inside of the backbone or the head may not.
    """
    said = kinds.named(model.config) is not None
    if lost := sorted(key for key in keys if _inside(model, key) or not said):
        raise Unusable(
            f"{source} holds the weights {listed(lost)}, which a {type(model).__name__} as its "
            f"{CONFIG} has it would leave out."
        )


def _inside(model: PreTrainedModel, key: str) -> bool:
    """Whether a weight belongs to a module that the network has, deeper than its top."""
    if BUFFERS.search(key):
        return False
    prefix = model.base_model_prefix
    owner, whole = _owner(model, key)
    if owner is model and prefix and not key.startswith(f"{prefix}."):
        backbone: Any = model.base_model
        owner, whole = _owner(backbone, key)  # as saved from the backbone alone
    if whole and key.endswith(".bias") and "weight" not in owner._parameters:
        return False  # a causal mask, which older releases saved
    return owner is not model and owner is not model.base_model


def _owner(model: nn.Module, key: str) -> tuple[nn.Module, bool]:
    """The deepest module on the way to a weight, and whether that is the whole way."""
    *path, _ = key.split(".")
    owner = model
    for name in path:
        child = owner._modules.get(name)
        if child is None:
            return owner, False
        owner = child
    return owner, True


def _names_code(content: Mapping[str, Any]) -> bool:
    """Whether a configuration names an implementation (of attention, of experts) on a hub."""
    for key, value in content.items():
        if isinstance(value, Mapping) and _names_code(value):
            return True
        if key.endswith("implementation") and "/" in str(value):
            return True
    return False


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers reports what it made up in tables of many lines; we refuse it in one."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)
