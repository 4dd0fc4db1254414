"""Checks of a checkpoint's files before they are opened.

Opening a FIFO or a device would block, and a configuration of hundreds of megabytes would fill the
memory, so only regular files of a plausible size are read. Hub names need no such check.
"""

import json
import os
import re
import stat
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

MIB = 2**20
LARGEST = {
    16 * MIB: (
        *("*config.json", "*.index.json", "MANIFEST.json", "trimtab.json"),
        *("special_tokens_map.json", "added_tokens.json", "chat_template*", "*.jinja"),
    ),
    64 * MIB: ("tokenizer*", "vocab*", "merges.txt", "*.model", "*.spm", "tekken.json"),
}
"""Maximum bytes of files that are read whole; the first pattern that matches a name applies."""
TEMPLATES = "additional_chat_templates"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
HUB_NAME = re.compile(r"(\w[\w.-]*/)?\w[\w.-]*")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


class Unusable(ValueError):
    """A checkpoint cannot be used as requested; the message is one line that names it."""


def check_files(source: str | Path) -> None:
    """Check the files that a loader would open, if `source` is a directory.

    Raises:
        Unusable: one of them is not a regular file, or is implausibly large.
    """
    top = Path(source)
    for folder in (top, top / TEMPLATES):
        if folder.is_dir():
            for entry in _entries(folder):
                _check_file(entry)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise Unusable(f"{folder} cannot be read ({error.strerror}).") from None


def _check_file(entry: os.DirEntry[str]) -> None:
    limit = largest(entry.name)
    if limit is None and not entry.name.endswith(".safetensors"):
        return
    try:
        status = entry.stat()
    except OSError as error:
        raise Unusable(f"{entry.path} cannot be read ({error.strerror}).") from None
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        raise Unusable(f"{entry.path} is a FIFO, a socket or a device; expected a regular file.")
    if limit is not None and status.st_size > limit:
        raise Unusable(
            f"{entry.path} has {status.st_size // MIB} MiB; the limit is {limit // MIB}."
        )


def largest(name: str) -> int | None:
    """Maximum bytes of a file that is read whole, by its name; None for other files."""
    for limit, patterns in LARGEST.items():
        if any(fnmatch(name, pattern) for pattern in patterns):
            return limit
    return None


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        Unusable: it cannot be read, or does not hold an object.
    """
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise Unusable(f"{file} cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError):
        raise Unusable(f"{file} is damaged: not JSON.") from None
    if not isinstance(content, dict):
        raise Unusable(f"{file} holds no JSON object.")
    return content


def check_weights(directory: Path) -> None:
    """Make sure that a directory holds all its weights in safetensors.

    Raises:
        FileNotFoundError: it has none.
        Unusable: its index is damaged, or names files outside the directory.
    """
    if (directory / WEIGHTS).is_file():
        return
    if (directory / INDEX).is_file():
        shards = read_json(directory / INDEX).get("weight_map")
        names = list(shards.values()) if isinstance(shards, dict) else [None]
        if not all(_is_in(directory, name) for name in names):
            raise Unusable(f"{directory / INDEX} names files that are not there.")
        return
    pickles = sorted(file.name for pattern in PICKLES for file in directory.glob(pattern))
    reason = f"; {listed(pickles)} may be pickled code and is not opened" if pickles else ""
    raise FileNotFoundError(f"{directory} has no weights in safetensors{reason}.")


def refuse_gguf(source: str | Path) -> None:
    """Make sure that a checkpoint is not a GGUF file, or a directory with weights only in GGUF.

    Raises:
        Unusable: it is.
    """
    path = Path(source)
    only = path.is_dir() and any(path.glob("*.gguf")) and not any(path.glob("*.safetensors"))
    if only or path.suffix == ".gguf":
        raise Unusable(
            f"{source} is in GGUF, which is not read; give a checkpoint of transformers with "
            "weights in safetensors."
        )


def is_missing(source: str) -> bool:
    """Whether a checkpoint's path is no file or directory, and cannot be a hub name either."""
    return not Path(source).exists() and not HUB_NAME.fullmatch(source)


def _is_in(directory: Path, name: object) -> bool:
    return isinstance(name, str) and Path(name).name == name and (directory / name).is_file()


def listed(names: Sequence[str], most: int = 3) -> str:
    """Names for a message: the first `most`, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def beside(source: str | Path, name: str) -> str:
    """The directory `name`, which may be relative to the checkpoint `source`; else a hub name."""
    path = Path(source) / name  # an absolute name replaces the source
    return str(path) if path.is_dir() else name
