"""PEFT adapters as scorers: a base network with what was trained merged into it.

adapter_model.safetensors   what was trained; the head too, if it is new
adapter_config.json         PEFT's own; it names the base network
trimtab.json                the ScorerInfo (config.json stays away: with one, transformers would
                            look for a whole network here)
"""

import importlib
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)
from transformers.utils import cached_file, find_adapter_config_file

from trimtab_models.info import ScorerInfo

INFO = "trimtab.json"
WEIGHTS = "adapter_model.safetensors"
NETWORKS = {
    "TOKEN_CLS": AutoModelForTokenClassification,
    "SEQ_CLS": AutoModelForSequenceClassification,
    "CAUSAL_LM": AutoModelForCausalLM,
}
"""The class of the base network, by the adapter's task_type."""


def is_adapter(source: str | Path) -> bool:
    """Whether a directory or hub name holds an adapter, and no whole network."""
    return find_adapter_config_file(str(source)) is not None


def save(model: Any, info: ScorerInfo, directory: Path) -> None:
    """Write an adapter (a PeftModel), without its base."""
    model.save_pretrained(directory)
    (directory / INFO).write_text(info.model_dump_json(indent=2), encoding="utf-8")


def read_info(source: str | Path) -> ScorerInfo:
    """The ScorerInfo of an adapter; the defaults if it was not made here."""
    file = cached_file(str(source), INFO, _raise_exceptions_for_missing_entries=False)
    if file is None:
        return ScorerInfo()
    return ScorerInfo.model_validate_json(Path(file).read_text(encoding="utf-8"))


def load(source: str | Path, **options: Any) -> tuple[PreTrainedModel, list[str]]:
    """The base network with the adapter merged, and the names of weights that neither has.

    Args:
        source: a directory or hub name.
        options: of the base network's from_pretrained (dtype, attn_implementation, ...).

    Raises:
        OSError: the adapter or its base is not there, or not in safetensors.
        ValueError: PEFT is not installed, or the adapter is of a kind that cannot be merged.
    """
    try:
        peft = importlib.import_module("peft")
    except ImportError:
        raise ValueError(
            f"{source} is a PEFT adapter; install peft to load it (pip install 'trimtab[train]'), "
            "or merge it into its base first."
        ) from None
    config = peft.PeftConfig.from_pretrained(str(source))
    if config.task_type not in NETWORKS:
        raise ValueError(
            f"the adapter's task_type is {config.task_type!r}; a scorer's is one of "
            f"{', '.join(NETWORKS)}."
        )
    with safe_open(cached_file(str(source), WEIGHTS), "pt") as file:
        shapes = {
            name.removeprefix("base_model.model."): file.get_slice(name).get_shape()
            for name in file.keys()  # noqa: SIM118  a safetensors file is no dict
        }
    base = config.base_model_name_or_path
    if (beside := Path(source) / base).is_dir():
        base = str(beside)
    base_config = AutoConfig.from_pretrained(base)
    for head in ("score.weight", "classifier.weight"):
        if head in shapes:
            base_config.num_labels = shapes[head][0]
    if shapes.keys() & {"lm_head.weight", "embed_out.weight"}:
        # The adapter brings an output embedding of its own: it is not the input's.
        base_config.tie_word_embeddings = False
    network, report = NETWORKS[config.task_type].from_pretrained(
        base, config=base_config, output_loading_info=True, **options
    )
    adapted = peft.PeftModel.from_pretrained(network, str(source), torch_device="cpu")
    if not hasattr(adapted.base_model, "merge_and_unload"):
        raise ValueError(
            f"an adapter of kind {config.peft_type} cannot be merged into its base; expected LoRA "
            "or one of its relatives."
        )
    merged: PreTrainedModel = adapted.merge_and_unload()
    return merged.eval(), sorted(set(report["missing_keys"]) - set(shapes))
