"""PEFT adapters as scorers: a base network with the trained adapter merged into it.

adapter_model.safetensors   the trained weights; a new head is among them
adapter_config.json         PEFT's own; it names the base network
trimtab.json                the ScorerInfo (there is no config.json: with one, transformers would
                            expect a whole network here)
"""

import importlib
import warnings
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from trimtab_models import kinds, pretrained
from trimtab_models.files import Unusable, beside, listed, read_json
from trimtab_models.info import ScorerInfo, parse

INFO = "trimtab.json"
WEIGHTS = "adapter_model.safetensors"
NETWORKS = {
    "TOKEN_CLS": AutoModelForTokenClassification,
    "SEQ_CLS": AutoModelForSequenceClassification,
    "CAUSAL_LM": AutoModelForCausalLM,
}
"""The class of the base network, by the adapter's task_type."""
KINDS: dict[str, kinds.Kind] = {
    "TOKEN_CLS": "token",
    "SEQ_CLS": "sequence",
    "CAUSAL_LM": "language",
}
PREFIX = "base_model.model."


def is_adapter(source: str | Path) -> bool:
    """Whether a directory or hub name holds an adapter rather than a whole network."""
    return pretrained.file(source, pretrained.ADAPTER) is not None


def save(model: Any, info: ScorerInfo, directory: Path) -> None:
    """Write an adapter (a PeftModel), without its base."""
    model.save_pretrained(directory)
    (directory / INFO).write_text(info.model_dump_json(indent=2), encoding="utf-8")


def read_info(source: str | Path) -> ScorerInfo | None:
    """The ScorerInfo of an adapter; None if Trimtab did not write the adapter.

    Raises:
        Unusable: the file is damaged.
    """
    file = pretrained.file(source, INFO)
    return None if file is None else parse(read_json(file), str(file))


def task(source: str | Path) -> str:
    """The task of an adapter, one of NETWORKS.

    Raises:
        Unusable: the task is not one of them.
    """
    task_type = _config(source).get("task_type")
    if task_type not in NETWORKS:
        raise Unusable(
            f"{source}: the adapter's task_type is {str(task_type)[:40]!r}; expected one of "
            f"{', '.join(NETWORKS)}."
        )
    return str(task_type)


def base(source: str | Path) -> str:
    """The directory or hub name of an adapter's base network.

    A directory may be relative to the adapter's.

    Raises:
        Unusable: the adapter names no base network.
    """
    name = _config(source).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise Unusable(f"{source}: the adapter does not name its base network.")
    return beside(source, name)


def load(source: str | Path, **options: Any) -> PreTrainedModel:
    """The base network with the adapter merged; arguments and errors as for `adapted`."""
    merged: PreTrainedModel = adapted(source, **options).merge_and_unload()
    return merged.eval()


def adapted(source: str | Path, **options: Any) -> Any:
    """The base network with its adapter, a PeftModel; no weight is initialised at random.

    Args:
        source: a directory or hub name.
        options: arguments of the base network's from_pretrained (dtype, attn_implementation, ...).

    Raises:
        FileNotFoundError: the adapter or its base is missing, or has no safetensors.
        Unusable: PEFT is not installed, this kind of adapter cannot be merged, or the weights do
            not fit the adapted network.
    """
    try:
        peft = importlib.import_module("peft")
    except ImportError:
        raise Unusable(
            f"{source} is a PEFT adapter; install peft to load it (pip install 'trimtab[train]'), "
            "or merge it into its base first."
        ) from None
    _refuse_kind(source, peft)
    shapes = _shapes(source)
    own = {name.removeprefix(PREFIX) for name in shapes}
    base_name, auto = base(source), NETWORKS[task(source)]
    config = pretrained.configuration(base_name)
    if task(source) == "CAUSAL_LM":
        kinds.check(base_name, "vocabulary", kinds.kind(base_name, config), kinds.named(config))
    for head in ("score.weight", "classifier.weight", "classifier.out_proj.weight"):
        if head in own:
            config.num_labels = shapes[PREFIX + head][0]
    if own & {"lm_head.weight", "embed_out.weight"}:
        # The adapter has its own output embedding, so it must not be tied to the input embedding.
        config.tie_word_embeddings = False
    network = pretrained.network(auto, base_name, config=config, new=own, **options)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # missing weights are refused below
            model = peft.PeftModel.from_pretrained(network, str(source), torch_device="cpu")
            learned = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    except Exception as error:
        raise Unusable(
            f"{source}: its weights do not fit the base network {base_name} "
            f"({type(error).__name__})."
        ) from error
    if missing := sorted(set(learned) - set(shapes)):
        raise Unusable(f"{source} lacks the weights {listed(missing)} of its adapter.")
    if unknown := sorted(set(shapes) - set(learned) - set(model.state_dict())):
        raise Unusable(
            f"{source} holds the weights {listed(unknown)}, which {base_name} does not use."
        )
    return model


def _config(source: str | Path) -> dict[str, Any]:
    """The content of adapter_config.json."""
    file = pretrained.file(source, pretrained.ADAPTER)
    return {} if file is None else read_json(file)


def _refuse_kind(source: str | Path, peft: Any) -> None:
    config = _config(source)
    peft_type = str(config.get("peft_type"))[:40]
    tuners = {str(kind.value): tuner for kind, tuner in peft.PEFT_TYPE_TO_TUNER_MAPPING.items()}
    # X-LoRA would load further adapters from any place that its configuration names.
    if peft_type == "XLORA" or not hasattr(tuners.get(peft_type), "merge_and_unload"):
        raise Unusable(
            f"{source}: an adapter of kind {peft_type} cannot be merged into its base; expected "
            "LoRA or one of its relatives."
        )
    if config.get("megatron_config") is not None:
        raise Unusable(f"{source}: the adapter names a module to import; that is never done.")


def _shapes(source: str | Path) -> dict[str, list[int]]:
    """The shapes of an adapter's weights, by name."""
    file = pretrained.file(source, WEIGHTS)
    if file is None:
        raise FileNotFoundError(f"{source} has no {WEIGHTS}; no other format is read.")
    try:
        with safe_open(file, "pt") as weights:
            return {
                name: list(weights.get_slice(name).get_shape())
                for name in weights.keys()  # noqa: SIM118  a safetensors file is not a dict
            }
    except SafetensorError:
        raise Unusable(f"{file} is damaged, or is not a safetensors file.") from None
