"""Hot loading: a scorer is checked, sized and built while others serve.

It comes from a directory below one root, in safetensors, with a manifest that it keeps to. Whatever
is wrong with it is told in a sentence that names no path, and changes nothing.
"""

import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from trimtab import scorers as families
from trimtab.config import GuidanceConfig, ScorerSpec
from trimtab.errors import NoRoom, ScorerRefused
from trimtab.reasons import why
from trimtab.scorers import Scorer
from trimtab_models import manifest
from trimtab_models.checkpoint import read_info
from trimtab_models.files import MIB, look, read_json

FAMILIES = tuple(name for name, family in families.FAMILIES.items() if family.hot)
"""What may come: networks. Functions are code, and composites are made of what is there."""
MAX_HEADER = 16 * MIB
"""Longest header of a safetensors file that is read: a megabyte is a thousand tensors and more."""
MOST_FILES = 1000
"""Most files and directories of a checkpoint."""
SPARE = 0.1
"""Share of the free memory that is left free."""


def load(
    name: str,
    spec: ScorerSpec,
    root: Path,
    build: Callable[[GuidanceConfig], dict[str, Scorer]],
    *,
    cache_bytes: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Scorer:
    """Read a scorer; spec.path and spec.reference are directories directly below `root`.

    build: load_scorers, with all that is known of the base. cache_bytes: of its prefix pools.

    Raises:
        ScorerRefused: it is broken, or not of a kind that may come.
        NoRoom: it does not fit into what memory is free.
    """
    try:
        look_through(Path(spec.path), root)
        spec = _with_reference(spec, root)
        directories = [Path(path) for path in (spec.path, spec.reference) if path is not None]
        for directory in directories:
            _check_files(directory, root)
        _check_room(sum(map(_elements, directories)) * dtype.itemsize + cache_bytes, device)
        for directory in directories:
            manifest.verify(directory)
        config = GuidanceConfig(scorers={name: spec}, cache_bytes=cache_bytes)
        return build(config)[name]
    except NoRoom:
        raise
    except Exception as error:
        raise ScorerRefused(f"scorer '{name}' is not loaded: {reason(error, root)}") from error


def reason(error: BaseException, root: Path) -> str:
    """What was wrong, in one sentence without any path."""
    text = why(error).replace(f"{root}/", "").split(" is not loaded: ")[-1]
    text = re.sub(r"^scorer '[^']*' cannot be loaded: ", "", text)
    text = re.sub(r"(?<![\w.])/[^\s:,;'\"]+", "…", text)[:300].strip()
    return text if text.endswith(".") else f"{text}."


def look_through(directory: Path, root: Path) -> None:
    """Look at everything in a directory before anything of it is opened.

    Raises:
        ScorerRefused: it holds a link, or what is neither file nor directory, or too many of them.
        Unusable: a file is far too large, see files.look.
    """
    if directory.is_symlink() or not directory.resolve().is_relative_to(root):
        raise ScorerRefused("it holds a symbolic link; copy the files.")
    left, count = [directory], 0
    while left:
        with os.scandir(left.pop()) as entries:
            for entry in entries:
                count += 1
                if count > MOST_FILES:
                    raise ScorerRefused(
                        f"it holds more than {MOST_FILES} files; expected a checkpoint alone."
                    )
                if entry.is_symlink():
                    raise ScorerRefused("it holds a symbolic link; copy the files.")
                if entry.is_dir():
                    left.append(Path(entry.path))
                elif not entry.is_file():
                    raise ScorerRefused(
                        f"{entry.name} is a FIFO, a socket or a device; expected a regular file."
                    )
    look(directory)


def free_bytes(device: torch.device) -> int:
    """Memory that may still be taken on a device."""
    if device.type != "cuda":
        return psutil.virtual_memory().available
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + cached


def _check_room(needed: int, device: torch.device) -> None:
    free = int(free_bytes(device) * (1 - SPARE))
    if needed > free:
        raise NoRoom(
            f"weights and prefix cache take {needed // MIB + 1} MiB and {free // MIB} MiB are "
            "free; unload a scorer first, or start the server with a smaller cache_bytes or "
            "gpu_memory_utilization."
        )


def _with_reference(spec: ScorerSpec, root: Path) -> ScorerSpec:
    """The same, with the untuned model that the checkpoint names, if it may come too."""
    directory = Path(spec.path)
    if (directory / "adapter_config.json").exists():
        raise ScorerRefused("it is an adapter, whose base lies elsewhere; merge it first.")
    if not (directory / "config.json").is_file():
        raise ScorerRefused("it has no config.json; expected a checkpoint of trimtab train.")
    info = read_info(directory)
    family = spec.family or info.family
    if family not in FAMILIES:
        raise ScorerRefused(f"family must be one of {', '.join(FAMILIES)}.")
    reference = spec.reference
    if reference is None and info.reference is not None:
        beside = (directory / info.reference).resolve()
        if beside.parent != root or not beside.is_dir():
            raise ScorerRefused(
                "its untuned model lies elsewhere; put it beside it, and name it as reference."
            )
        reference = str(beside)
    return spec.model_copy(update={"family": family, "reference": reference})


def _check_files(directory: Path, root: Path) -> None:
    """Refuse files without a digest, and what is not safetensors."""
    look_through(directory, root)
    if not (directory / manifest.NAME).is_file():
        raise ScorerRefused(f"it has no {manifest.NAME}; trimtab publish writes one.")
    named = manifest.read(directory)
    weights = sorted(directory.glob("*.safetensors"))
    if not weights:
        raise ScorerRefused("it has no weights in safetensors; other formats are not read.")
    indices = sorted(directory.glob("*.safetensors.index.json"))
    for file in (directory / "config.json", *weights, *indices):
        if file.name not in named:
            raise ScorerRefused(f"{manifest.NAME} does not name {file.name}.")
    for index in indices:
        shards = read_json(index).get("weight_map")
        names = list(shards.values()) if isinstance(shards, dict) else [None]
        if not all(name in {file.name for file in weights} for name in names):
            raise ScorerRefused(f"{index.name} names files that are not there.")


def _elements(directory: Path) -> int:
    """How many numbers its weights are, by their headers, which must fit their files."""
    total = 0
    for path in sorted(directory.glob("*.safetensors")):
        try:
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(length) if length <= MAX_HEADER else b"")
            tensors = [entry for name, entry in header.items() if name != "__metadata__"]
            end = max(entry["data_offsets"][1] for entry in tensors)
            total += sum(math.prod(entry["shape"]) for entry in tensors)
            sound = path.stat().st_size == 8 + length + end
        except (ValueError, LookupError, TypeError, AttributeError):
            sound = False
        if not sound:
            raise ScorerRefused(
                f"{path.name} is no safetensors file, or is cut short; nothing of it was run."
            )
    return total
