"""Scorer checkpoints: a directory that transformers loads by itself.

model.safetensors   the network (see networks.py), or an adapter of one (peft.py)
config.json         transformers' own, with one more key, "trimtab": a ScorerInfo
tokenizer*.json     the tokenizer of the base model that the scorer reads
README.md           the model card
MANIFEST.json       SHA-256 of all of them (manifest.py)
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trimtab_models import kinds, manifest, outputs, peft, pretrained
from trimtab_models.card import card
from trimtab_models.files import Unusable, look
from trimtab_models.info import Family, Link, ScorerInfo, parse
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
            peft.save(model, info, work)
        if tokenizer is not None:
            tokenizer.save_pretrained(work)
        if extras is not None:
            extras(work)
        (work / "README.md").write_text(card(info, text, work), encoding="utf-8")
        for file in work.iterdir():
            file.chmod(0o644)
    return Path(path)


def read_info(source: str | Path) -> ScorerInfo:
    """The ScorerInfo of a checkpoint directory or hub name; the defaults if it holds none.

    Raises:
        as `load`.
    """
    return _stored(source) or ScorerInfo()


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
        Unusable: (a ValueError) it is of another kind than the family is made of, or weights are
            missing from it, or do not fit its configuration.
    """
    verify(source)
    info = described(source, family)
    if family is not None:
        info = info.model_copy(update={"family": family})
    if peft.is_adapter(source):
        return peft.load(source, dtype=dtype, **options), info
    return _whole(source, info.family, dtype=dtype, **options), info


def vet(source: str | Path, family: Family) -> None:
    """Refuse what `load` would, but for damage that a manifest shows; the weights stay on disk.

    Raises:
        as `load`.
    """
    described(source, family)
    if peft.is_adapter(source):
        peft.adapted(source, dtype="auto")
    else:
        _whole(source, family, dtype="auto")  # as they are in the file, so they are mapped alone


def _whole(source: str | Path, family: Family, **options: Any) -> PreTrainedModel:
    model: PreTrainedModel
    if family in ("head", "distribution"):
        labels = pretrained.configuration(source).num_labels
        bins = labels if family == "distribution" else 1
        model = scalar_head(source, bins=bins, fresh=False, **options)
    else:
        model = vocabulary_head(source, **options)
    return model


def verify(source: str | Path) -> None:
    """Look at a checkpoint's files, and compare them with its manifest if it has one.

    Raises:
        Unusable, BrokenCheckpoint: one of them is not what it must be.
    """
    look(source)
    if (Path(source) / manifest.NAME).is_file():
        manifest.verify(source)


def described(source: str | Path, family: str | None = None) -> ScorerInfo:
    """What a checkpoint says of itself, if it is of a kind that a family, or its own, is made of.

    Raises:
        as `load`.
    """
    stated = _stored(source)
    says = stated.family if stated is not None and "family" in stated.model_fields_set else None
    if family is not None and says not in (None, family):
        raise Unusable(
            f"{source} was made as a {says} scorer, and is not served as {family}; leave family "
            "out."
        )
    served = family or says or "head"
    if peft.is_adapter(source):
        task = peft.task(source)
        kinds.check(source, served, peft.KINDS[task], f"an adapter of task {task}")
    else:
        config = pretrained.configuration(source)
        kinds.check(source, served, kinds.kind(source, config), kinds.named(config))
    return stated or ScorerInfo()


def _stored(source: str | Path) -> ScorerInfo | None:
    if peft.is_adapter(source):
        return peft.read_info(source)
    fields = getattr(pretrained.configuration(source), "trimtab", None)
    return None if fields is None else parse(fields, f"{source}: its {pretrained.CONFIG}")
