"""PEFT adapters as scorers: a base network with what was trained merged into it.

adapter_model.safetensors   what was trained; the head too, if it is new
adapter_config.json         PEFT's own; it names the base network
trimtab.json                the ScorerInfo (config.json stays away: with one, transformers would
                            look for a whole network here)
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
from trimtab_models.files import Unusable, listed, read_json
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
    """Whether a directory or hub name holds an adapter, and no whole network."""
    return pretrained.file(source, pretrained.ADAPTER) is not None


def save(model: Any, info: ScorerInfo, directory: Path) -> None:
    """Write an adapter (a PeftModel), without its base."""
    model.save_pretrained(directory)
    (directory / INFO).write_text(info.model_dump_json(indent=2), encoding="utf-8")


def read_info(source: str | Path) -> ScorerInfo | None:
    """The ScorerInfo of an adapter; None if it was not made here.

    Raises:
        Unusable: it is damaged.
    """
    file = pretrained.file(source, INFO)
    return None if file is None else parse(read_json(file), str(file))


def task(source: str | Path) -> str:
    """The task of an adapter, one of NETWORKS.

    Raises:
        Unusable: it is another one.
    """
    found = _stated(source).get("task_type")
    if found not in NETWORKS:
        raise Unusable(
            f"{source}: the adapter's task_type is {str(found)[:40]!r}; a scorer's is one of "
            f"{', '.join(NETWORKS)}."
        )
    return str(found)


def base(source: str | Path) -> str:
    """The directory or hub name of an adapter's base network; a directory may be beside it.

    Raises:
        Unusable: it names none.
    """
    name = _stated(source).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise Unusable(f"{source}: the adapter does not name its base network.")
    beside = Path(source) / name
    return str(beside) if beside.is_dir() else name


def load(source: str | Path, **options: Any) -> PreTrainedModel:
    """The base network with the adapter merged; as `adapted`."""
    merged: PreTrainedModel = adapted(source, **options).merge_and_unload()
    return merged.eval()


def adapted(source: str | Path, **options: Any) -> Any:
    """The base network with the adapter beside it, a PeftModel, and nothing made up.

    Args:
        source: a directory or hub name.
        options: of the base network's from_pretrained (dtype, attn_implementation, ...).

    Raises:
        FileNotFoundError: the adapter or its base is not there, or not in safetensors.
        Unusable: PEFT is not installed, the adapter is of a kind that cannot be merged, or its
            weights are not those of the adapted network.
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
    where, auto = base(source), NETWORKS[task(source)]
    config = pretrained.configuration(where)
    if task(source) == "CAUSAL_LM":
        kinds.check(where, "vocabulary", kinds.kind(where, config), kinds.named(config))
    for head in ("score.weight", "classifier.weight"):
        if head in own:
            config.num_labels = shapes[PREFIX + head][0]
    if own & {"lm_head.weight", "embed_out.weight"}:
        # The adapter brings an output embedding of its own: it is not the input's.
        config.tie_word_embeddings = False
    network = pretrained.network(auto, where, config=config, new=own, **options)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is missing is refused below
            model = peft.PeftModel.from_pretrained(network, str(source), torch_device="cpu")
            learned = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    except Exception as error:
        raise Unusable(
            f"{source}: its weights do not fit the base network {where} ({type(error).__name__})."
        ) from error
    if missing := sorted(set(learned) - set(shapes)):
        raise Unusable(f"{source} lacks the weights {listed(missing)} of its adapter.")
    if unknown := sorted(set(shapes) - set(learned) - set(model.state_dict())):
        raise Unusable(
            f"{source} holds the weights {listed(unknown)}, which {where} has no use of."
        )
    return model


def _stated(source: str | Path) -> dict[str, Any]:
    file = pretrained.file(source, pretrained.ADAPTER)
    return {} if file is None else read_json(file)


def _refuse_kind(source: str | Path, peft: Any) -> None:
    stated = _stated(source)
    found = str(stated.get("peft_type"))[:40]
    tuners = {str(kind.value): tuner for kind, tuner in peft.PEFT_TYPE_TO_TUNER_MAPPING.items()}
    # X-LoRA would load further adapters, from wherever its configuration says.
    if found == "XLORA" or not hasattr(tuners.get(found), "merge_and_unload"):
        raise Unusable(
            f"{source}: an adapter of kind {found} cannot be merged into its base; expected LoRA "
            "or one of its relatives."
        )
    if stated.get("megatron_config") is not None:
        raise Unusable(f"{source}: the adapter names a module to import, which is never done.")


def _shapes(source: str | Path) -> dict[str, list[int]]:
    """The shapes of an adapter's weights, by name."""
    file = pretrained.file(source, WEIGHTS)
    if file is None:
        raise FileNotFoundError(f"{source} has no {WEIGHTS}; other formats are not read.")
    try:
        with safe_open(file, "pt") as weights:
            return {
                name: list(weights.get_slice(name).get_shape())
                for name in weights.keys()  # noqa: SIM118  a safetensors file is no dict
            }
    except SafetensorError:
        raise Unusable(f"{file} is damaged, or is not a safetensors file.") from None
