"""Scorer checkpoints: directories that plain transformers can load.

model.safetensors   the network (see networks.py), or an adapter of one (peft.py)
config.json         transformers' own, with one more key, "trimtab": a ScorerInfo
tokenizer*.json     the tokenizer of the base model that the scorer reads
README.md           the model card
MANIFEST.json       SHA-256 of these files, except the card (manifest.py)
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trimtab_models import kinds, manifest, outputs, peft, pretrained, probe
from trimtab_models.card import card
from trimtab_models.files import Unusable, check_files
from trimtab_models.info import Family, Link, ScorerInfo, parse
from trimtab_models.networks import classifier, scalar_head, vocabulary_head

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
    """Write a checkpoint with its manifest, atomically.

    An older checkpoint at `path` stays until the new one is complete. Links are followed.

    Args:
        model: a PreTrainedModel, or a PeftModel, of which only the adapter is written.
        tokenizer: the base's.
        info: the scorer's description.
        path: the directory of the checkpoint.
        text: the beginning of the model card.
        extras: writes more files into the directory it is called with, such as a report.

    Raises:
        InTheWay: (an OSError) `path` is something other than an older checkpoint.
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
    """The ScorerInfo of a checkpoint directory or hub name; the defaults if it has none.

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

    Weights are read from safetensors only, and no code of the checkpoint runs. A directory with a
    manifest must match it. An adapter is merged into its base.

    Raises:
        OSError: no such checkpoint, or no safetensors in it.
        BrokenCheckpoint: (a ValueError) a file does not match the manifest.
        Unusable: (a ValueError) the kind of network cannot serve the family, or weights are
            missing or do not fit the configuration.
    """
    verify(source)
    info = checked_info(source, family)
    if family is not None:
        info = info.model_copy(update={"family": family})
    if peft.is_adapter(source):
        return peft.load(source, dtype=dtype, **options), info
    return _whole(source, info.family, info.heads, dtype=dtype, **options), info


def precheck(source: str | Path, family: Family) -> None:
    """Check a checkpoint as `load` does, without its manifest; the weights stay on disk.

    Raises:
        as `load`.
    """
    info = checked_info(source, family)
    if peft.is_adapter(source):
        peft.adapted(source, dtype="auto")
    else:
        # In the file's own dtype, so that weights are only mapped.
        _whole(source, family, info.heads, dtype="auto")


def _whole(source: str | Path, family: Family, heads: int, **options: Any) -> PreTrainedModel:
    model: PreTrainedModel
    if family in ("head", "distribution"):
        labels = pretrained.configuration(source).num_labels
        bins = labels if family == "distribution" else heads
        model = scalar_head(source, bins=bins, fresh=False, **options)
    elif family == "probe":
        model = probe.load(source, **options)
    elif family == "text":
        model = classifier(source, fresh=False, **options)
    else:
        model = vocabulary_head(source, **options)
    return model


def verify(source: str | Path) -> None:
    """Check a checkpoint's files, and compare them with its manifest if it has one.

    Raises:
        Unusable, BrokenCheckpoint: a file must not be opened, or does not match.
    """
    check_files(source)
    if (Path(source) / manifest.NAME).is_file():
        manifest.verify(source)


def checked_info(source: str | Path, family: str | None = None) -> ScorerInfo:
    """A checkpoint's ScorerInfo, after checks that its network can serve the family.

    family: by default the checkpoint's own.

    Raises:
        as `load`.
    """
    stored = _stored(source)
    own = stored.family if stored is not None and "family" in stored.model_fields_set else None
    if family is not None and own not in (None, family):
        raise Unusable(
            f"{source} was made as a {own} scorer and cannot be served as {family}; leave out "
            "family."
        )
    served = family or own or "head"
    if peft.is_adapter(source):
        task = peft.task(source)
        kinds.check(source, served, peft.KINDS[task], f"an adapter of task {task}")
    else:
        config = pretrained.configuration(source)
        kinds.check(source, served, kinds.kind(source, config), kinds.named(config))
    return stored or ScorerInfo()


def _stored(source: str | Path) -> ScorerInfo | None:
    if peft.is_adapter(source):
        return peft.read_info(source)
    fields = getattr(pretrained.configuration(source), "trimtab", None)
    return None if fields is None else parse(fields, f"{source}: its {pretrained.CONFIG}")
