"""Scorer checkpoints: a directory that transformers loads by itself.

model.safetensors   the network (see networks.py), or an adapter of one (adapters.py)
config.json         transformers' own, with one more key, "trimtab": a ScorerInfo
tokenizer*.json     the tokenizer of the base model that the scorer reads
README.md           the model card
MANIFEST.json       SHA-256 of all of them (manifest.py)
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from trimtab_models import adapters, manifest, outputs
from trimtab_models.card import card
from trimtab_models.info import Family, Link, ScorerInfo
from trimtab_models.networks import scalar_head, vocabulary_head

__all__ = ["Family", "Link", "ScorerInfo", "load", "read_info", "save"]


def save(
    model: Any,
    tokenizer: PreTrainedTokenizerBase | None,
    info: ScorerInfo,
    path: str | Path,
    *,
    text: str = "A Trimtab scorer.",
    extras: Callable[[Path], None] | None = None,
) -> Path:
    """Write a checkpoint with its manifest; the directory appears whole, or not at all.

    An older checkpoint at `path` is there until the new one is complete. Links are followed.

    Args:
        model: a PreTrainedModel, or a PeftModel, of which the adapter alone is written.
        tokenizer: the base's.
        info: what the scorer is.
        path: the directory to make.
        text: what the model card begins with.
        extras: writes more files into the directory that it is given, a report for the card.

    Raises:
        InTheWay: (an OSError) at `path` is something else than an older checkpoint.
    """
    target = outputs.place(path)
    manifest.replaceable(target)
    with manifest.placing(target) as work:
        if isinstance(model, PreTrainedModel):
            model.config.trimtab = info.model_dump()
            model.save_pretrained(work)
        else:
            adapters.save(model, info, work)
        if tokenizer is not None:
            tokenizer.save_pretrained(work)
        if extras is not None:
            extras(work)
        (work / "README.md").write_text(card(info, text, work), encoding="utf-8")
        for file in work.iterdir():
            file.chmod(0o644)
    return Path(path)


def read_info(source: str | Path) -> ScorerInfo:
    """The ScorerInfo of a checkpoint directory or hub name; the defaults if it holds none."""
    if adapters.is_adapter(source):
        return adapters.read_info(source)
    config = AutoConfig.from_pretrained(str(source))
    return ScorerInfo.model_validate(getattr(config, "trimtab", {}))


def load(
    source: str | Path,
    *,
    family: Family | None = None,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> tuple[PreTrainedModel, ScorerInfo]:
    """A scorer network and its ScorerInfo, from a directory or a hub name.

    Weights come from safetensors only, and no code of the checkpoint runs. A directory that has a
    manifest must be what it says. An adapter comes merged into its base.

    Raises:
        OSError: no such checkpoint, or no safetensors in it.
        BrokenCheckpoint: (a ValueError) a file is not what the manifest says.
        ValueError: weights are missing from it, or do not fit its configuration.
    """
    if (Path(source) / manifest.NAME).is_file():
        manifest.verify(source)
    info = read_info(source)
    if family is not None:
        info = info.model_copy(update={"family": family})
    options |= {"dtype": dtype, "use_safetensors": True, "trust_remote_code": False}
    try:
        model, missing = _load(source, info.family, options)
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(f"the weights of {source} do not fit or are damaged: {error}") from error
    if missing:
        raise ValueError(
            f"the checkpoint lacks the weights {missing[:3]} of a "
            f"'{info.family}' scorer; expected a network saved by trimtab_models.checkpoint.save "
            "or by the matching transformers class."
        )
    return model, info


def _load(
    source: str | Path, family: Family, options: dict[str, Any]
) -> tuple[PreTrainedModel, list[str]]:
    """The network and the names of weights that it lacks."""
    if adapters.is_adapter(source):
        return adapters.load(source, **options)
    if family == "distribution":
        options["bins"] = AutoConfig.from_pretrained(str(source)).num_labels
    build = scalar_head if family in ("head", "distribution") else vocabulary_head
    model, report = build(source, output_loading_info=True, **options)
    return model, sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
