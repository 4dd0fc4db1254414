"""The only place that loads transformers' configurations, tokenizers and networks.

No code of a checkpoint runs, nothing waits for input, no weight is initialised at random, and every
error is one line. transformers itself asks on standard input whether to run a tokenizer's code, and
initialises missing weights at random.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.utils.tqdm import are_progress_bars_disabled, enable_progress_bars
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.tokenization_auto import tokenizer_class_from_name
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from trimtab_models import kinds
from trimtab_models.files import (
    Unusable,
    check_files,
    check_weights,
    listed,
    read_json,
    refuse_gguf,
)

CONFIG = "config.json"
ADAPTER = "adapter_config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
VOCABULARIES = (
    *(TOKENIZER_CONFIG, "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt"),
    *("spiece.model", "sentencepiece.bpe.model", "spm.model", "tekken.json"),
)
"""A checkpoint with any of these has a tokenizer."""
BUFFERS = re.compile(r"(^|\.)(masked_bias|position_ids|inv_freq)$")
"""Names of buffers that older releases saved, though they are not trained."""


def file(source: str | Path, name: str) -> Path | None:
    """A file of a checkpoint; None if there is none of that name.

    Raises:
        FileNotFoundError: there is no such checkpoint, or the hub cannot be reached.
        Unusable: one of its files must not be opened, see files.check_files.
    """
    top = Path(source)
    refuse_gguf(top)
    if top.is_dir():
        check_files(top)
        return top / name if (top / name).is_file() else None
    try:
        path = cached_file(str(source), name, _raise_exceptions_for_missing_entries=False)
    except Exception as error:
        raise _not_found(source) from error
    return None if path is None else Path(path)


def configuration(source: str | Path, **overrides: Any) -> Any:
    """The configuration of a checkpoint.

    Raises:
        FileNotFoundError: it has none, or there is no such checkpoint.
        Unusable: it is damaged, or describes a network that transformers does not have.
    """
    path = file(source, CONFIG)
    if path is None and not Path(source).is_dir():
        raise _not_found(source)
    if path is None:
        raise FileNotFoundError(f"{source} has no {CONFIG}; expected a checkpoint of transformers.")
    content = read_json(path)
    model_type = content.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        code = " It contains its own code, which is never run." if "auto_map" in content else ""
        raise Unusable(
            f"{source}: the model_type in its {CONFIG} is not one that transformers has.{code}"
        )
    if _names_code(content):
        raise Unusable(f"{source}: its {CONFIG} names code from elsewhere, which is never run.")
    try:
        with _errors_only():
            return AutoConfig.from_pretrained(str(source), trust_remote_code=False, **overrides)
    except Exception as error:
        raise Unusable(
            f"{source}: its {CONFIG} does not fit a {model_type} network ({type(error).__name__})."
        ) from error


def tokenizer(source: str | Path, **options: Any) -> Any:
    """The tokenizer of a checkpoint.

    Raises:
        FileNotFoundError: it has none, or there is no such checkpoint.
        Unusable: it is damaged, or needs its own code.
    """
    if not any(file(source, name) for name in VOCABULARIES):
        raise FileNotFoundError(f"{source} has no tokenizer.")
    path = file(source, TOKENIZER_CONFIG)
    content = {} if path is None else read_json(path)
    named = content.get("tokenizer_class")
    own = isinstance(named, str) and tokenizer_class_from_name(named) is not None
    if content.get("auto_map") and not own:
        raise Unusable(f"{source}: its tokenizer needs its own code, which is never run.")
    try:
        with _errors_only():
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
        config: a changed configuration; by default the checkpoint's own.
        new: weights or modules that may be initialised at random, because they will be trained or
            replaced.
        options: arguments of from_pretrained (dtype, attn_implementation, ...).

    Raises:
        FileNotFoundError: there is no such checkpoint, or no safetensors in it.
        Unusable: it is damaged, quantised or of another kind, or its weights do not fit the
            network.
    """
    if file(source, ADAPTER) is not None:
        raise Unusable(f"{source} is an adapter; expected a whole network. Merge it first.")
    used_config: PretrainedConfig = configuration(source) if config is None else config
    if type(used_config) not in auto._model_mapping:
        task = auto.__name__.removeprefix("AutoModel")
        raise Unusable(f"{source}: transformers has no {used_config.model_type} network {task}.")
    if getattr(used_config, "quantization_config", None):
        raise Unusable(f"{source}: its weights are quantised; expected plain ones.")
    if Path(source).is_dir():
        check_weights(Path(source))
    try:
        with _errors_only():
            model, report = auto.from_pretrained(
                str(source),
                config=used_config,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, by name
                **options,
            )
    except Exception as error:
        raise Unusable(
            f"{source}: its weights are damaged, or do not fit a {used_config.model_type} network "
            f"({type(error).__name__})."
        ) from error
    _refuse_missing(source, model, report, new)
    _refuse_unused(source, model, report["unexpected_keys"])
    return model


def _not_found(source: str | Path) -> FileNotFoundError:
    return FileNotFoundError(
        f"{source} is neither a checkpoint directory nor a hub name that can be reached."
    )


def _refuse_missing(
    source: str | Path, model: PreTrainedModel, report: Mapping[str, Any], new: Collection[str]
) -> None:
    """Every weight of the network, except the new ones, must come from the checkpoint."""

    def not_new(names: Collection[str]) -> list[str]:
        return sorted(n for n in names if n not in new and n.partition(".")[0] not in new)

    name = type(model).__name__
    if missing := not_new(report["missing_keys"]):
        raise Unusable(f"{source} lacks the weights {listed(missing)} of a {name}.")
    if wrong := not_new([key for key, *_ in report["mismatched_keys"]]):
        shapes = {key: (list(ours), list(own)) for key, ours, own in report["mismatched_keys"]}
        stored, expected = shapes[wrong[0]]
        raise Unusable(
            f"{source}: the weights {listed(wrong)} do not fit a {name} ({stored} in the file, "
            f"{expected} expected)."
        )


def _refuse_unused(source: str | Path, model: PreTrainedModel, keys: Collection[str]) -> None:
    """The network must use the checkpoint's weights; else the configuration is another network's.

    Heads for other tasks and a pooler may remain unused if the configuration names the class of
    the checkpoint; weights inside the backbone or the head may not.
    """
    named = kinds.named(model.config) is not None
    if unused := sorted(key for key in keys if _inside(model, key) or not named):
        raise Unusable(
            f"{source} holds the weights {listed(unused)}, which a {type(model).__name__} with its "
            f"{CONFIG} does not use."
        )


def _inside(model: PreTrainedModel, key: str) -> bool:
    """Whether a weight belongs to a module of the network below its top level."""
    if BUFFERS.search(key):
        return False
    prefix = model.base_model_prefix
    owner, whole = _owner(model, key)
    if owner is model and prefix and not key.startswith(f"{prefix}."):
        backbone: Any = model.base_model
        owner, whole = _owner(backbone, key)  # saved from the backbone alone
    if whole and key.endswith(".bias") and "weight" not in owner._parameters:
        return False  # a causal mask, saved by older releases
    return owner is not model and owner is not model.base_model


def _owner(model: nn.Module, key: str) -> tuple[nn.Module, bool]:
    """The deepest existing module on a weight's path, and whether the whole path exists."""
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
def _errors_only() -> Iterator[None]:
    """Without transformers' tables of initialised weights; our errors name them in one line."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        with without_bars():
            yield
    finally:
        transformers_logging.set_verbosity(before)


@contextmanager
def without_bars() -> Iterator[None]:
    """Without transformers' progress bars for files on this machine; downloads keep theirs."""
    if not transformers_logging.is_progress_bar_enabled():
        yield
        return
    downloads = not are_progress_bars_disabled()
    transformers_logging.disable_progress_bar()
    if downloads:
        enable_progress_bars()
    try:
        yield
    finally:
        transformers_logging.enable_progress_bar()
