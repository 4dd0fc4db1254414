"""Hot loading: check, size and build a scorer while the server runs.

The checkpoint is a directory below one root, in safetensors, and must match its manifest. A failure
changes nothing; its reason is one sentence without paths.
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
from trimtab_models.files import MIB, check_files, read_json

HOT_FAMILIES = tuple(name for name, family in families.FAMILIES.items() if family.hot)
"""Families that can be hot-loaded: networks. Functions are code; composites need loaded parts."""
MAX_HEADER = 16 * MIB
"""Maximum bytes of a safetensors header; a megabyte describes more than a thousand tensors."""
MAX_FILES = 1000
"""Maximum number of files and directories of a checkpoint."""
SPARE = 0.1
"""Share of the free memory to keep free."""


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
    """Load a scorer; spec.path and spec.reference are directories directly below `root`.

    build: load_scorers, with the arguments of the base. cache_bytes: of its prefix pools.

    Raises:
        ScorerRefused: it is broken, or of a kind that cannot be hot-loaded.
        NoRoom: it does not fit into free memory.
    """
    try:
        check_entries(Path(spec.path), root)
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
    """The reason for a failure, in one sentence without paths."""
    text = why(error).replace(f"{root}/", "").split(" is not loaded: ")[-1]
    text = re.sub(r"^scorer '[^']*' cannot be loaded: ", "", text)
    text = re.sub(r"(?<![\w.])/[^\s:,;'\"]+", "…", text)[:300].strip()
    return text if text.endswith(".") else f"{text}."


def check_entries(directory: Path, root: Path) -> None:
    """Check every entry of a directory before opening any file.

    Raises:
        ScorerRefused: there is a link, a special file, or more than MAX_FILES entries.
        Unusable: a file is far too large, see files.check_files.
    """
    if directory.is_symlink() or not directory.resolve().is_relative_to(root):
        raise ScorerRefused("it holds a symbolic link; copy the files.")
    pending, count = [directory], 0
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                count += 1
                if count > MAX_FILES:
                    raise ScorerRefused(
                        f"it holds more than {MAX_FILES} files; expected only a checkpoint."
                    )
                if entry.is_symlink():
                    raise ScorerRefused("it holds a symbolic link; copy the files.")
                if entry.is_dir():
                    pending.append(Path(entry.path))
                elif not entry.is_file():
                    raise ScorerRefused(
                        f"{entry.name} is a FIFO, a socket or a device; expected a regular file."
                    )
    check_files(directory)


def free_bytes(device: torch.device) -> int:
    """Free memory of a device."""
    if device.type != "cuda":
        return psutil.virtual_memory().available
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + cached


def _check_room(needed: int, device: torch.device) -> None:
    free = int(free_bytes(device) * (1 - SPARE))
    if needed > free:
        raise NoRoom(
            f"weights and prefix cache need {needed // MIB + 1} MiB and {free // MIB} MiB are "
            "free; unload a scorer first, or start the server with a smaller cache_bytes or "
            "gpu_memory_utilization."
        )


def _with_reference(spec: ScorerSpec, root: Path) -> ScorerSpec:
    """The specification, with the reference model of the checkpoint, if it can be loaded."""
    directory = Path(spec.path)
    if (directory / "adapter_config.json").exists():
        raise ScorerRefused("it is an adapter without its base; merge it first.")
    if not (directory / "config.json").is_file():
        raise ScorerRefused("it has no config.json; expected a checkpoint of trimtab train.")
    info = read_info(directory)
    family = spec.family or info.family
    if family not in HOT_FAMILIES:
        raise ScorerRefused(f"family must be one of {', '.join(HOT_FAMILIES)}.")
    reference = spec.reference
    if reference is None and info.reference is not None:
        beside = (directory / info.reference).resolve()
        if beside.parent != root or not beside.is_dir():
            raise ScorerRefused(
                "its reference model is in another place; put it beside the scorer's directory and "
                "name it as reference."
            )
        reference = str(beside)
    return spec.model_copy(update={"family": family, "reference": reference})


def _check_files(directory: Path, root: Path) -> None:
    """Refuse files without a digest, and weights that are not safetensors."""
    check_entries(directory, root)
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
            raise ScorerRefused(f"{index.name} names missing files.")


def _elements(directory: Path) -> int:
    """Number of weight elements, from the file headers, which must match the files' sizes."""
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
                f"{path.name} is not a safetensors file, or is cut short; no code was executed."
            )
    return total
