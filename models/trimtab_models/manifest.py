"""Directories with a verified content: SHA-256 of their files, and an atomic rename.

Files are written into a directory beside the target, each flushed to the disk; MANIFEST.json is
written last; then the directory is renamed, and the parent directory is flushed. After a kill or a
power cut at any moment the target is the old one, the new one, or absent, but never partial.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from pydantic import BaseModel, ConfigDict, Field

from trimtab_models import outputs

NAME = "MANIFEST.json"
FREE = "README.md"
"""The model card is not in the manifest, so that its author can edit it."""


class BrokenCheckpoint(ValueError):
    """A directory does not match its manifest; the message names the file."""


class Entry(BaseModel):
    """A manifest's entry for one file."""

    model_config = ConfigDict(extra="forbid", strict=True)

    bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


def _digest(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _files(directory: Path) -> list[Path]:
    return sorted(file for file in directory.rglob("*") if file.is_file() and file.name != NAME)


def write_manifest(directory: str | Path, apart: Container[str] = ()) -> None:
    """Flush every file below `directory` to the disk, then write and flush its manifest.

    apart: files that the manifest leaves out, relative to `directory`.
    """
    top = Path(directory)
    entries = {}
    for file in _files(top):
        _sync(file)
        name = file.relative_to(top).as_posix()
        if file.name == FREE or name in apart:
            continue
        entries[name] = {
            "bytes": file.stat().st_size,
            "sha256": _digest(file),
        }
    with open(top / NAME, "w", encoding="utf-8") as stream:
        json.dump(entries, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    for folder in {file.parent for file in _files(top)} | {top}:
        _sync(folder)


def read(directory: str | Path) -> dict[str, Entry]:
    """A directory's manifest: the relative path of each file → its entry.

    Raises:
        BrokenCheckpoint: there is none, or it is empty or damaged.
    """
    file = Path(directory) / NAME
    if not file.is_file():
        raise BrokenCheckpoint(f"{directory} has no {NAME}: its save was never completed.")
    try:
        entries = outputs.read(file, dict[str, Entry])
    except outputs.Damaged as error:
        raise BrokenCheckpoint(str(error)) from None
    paths = map(PurePosixPath, entries)
    if not entries or any(path.is_absolute() or ".." in path.parts for path in paths):
        raise BrokenCheckpoint(f"{file} is damaged: it does not name files of its directory.")
    return entries


def verify(directory: str | Path) -> None:
    """Compare a directory with its manifest.

    Raises:
        BrokenCheckpoint: the manifest is missing or damaged, or a file is missing or has another
            size or hash. Files that the manifest does not name are ignored.
    """
    top = Path(directory)
    for name, entry in read(top).items():
        file = top / name
        if "\0" in name or not file.is_file():
            raise BrokenCheckpoint(f"{file} is missing, though {NAME} names it.")
        if (size := file.stat().st_size) != entry.bytes:
            raise BrokenCheckpoint(f"{file} has {size} bytes; {NAME} says {entry.bytes}.")
        if _digest(file) != entry.sha256:
            raise BrokenCheckpoint(f"{file} is damaged: its SHA-256 is not the one in {NAME}.")


def foreign(directory: str | Path) -> list[str]:
    """Files of a directory that its manifest does not name; without a manifest, all files.

    Raises:
        BrokenCheckpoint: its manifest is damaged.
    """
    top = Path(directory)
    ours = {NAME, FREE, *read(top)} if (top / NAME).exists() else set()
    files = (path for path in top.rglob("*") if path.is_symlink() or not path.is_dir())
    names = (path.relative_to(top).as_posix() for path in files)
    return sorted(name for name in names if name not in ours)


def replaceable(target: Path) -> None:
    """Make sure that replacing `target` with a new directory loses nothing.

    Raises:
        InTheWay: it contains files that its manifest does not name, or is not a directory.
        BrokenCheckpoint: its manifest is damaged.
    """
    if os.path.lexists(target) and not target.is_dir():
        raise outputs.InTheWay(f"{target} is not a directory; choose another path.")
    if target.exists() and (others := foreign(target)):
        raise outputs.InTheWay(
            f"{target} holds {others[0]!r}, which is not part of an earlier checkpoint; choose "
            "another directory, or move that file away."
        )


@contextmanager
def placing(target: Path, apart: Container[str] = ()) -> Iterator[Path]:
    """A new directory that replaces `target` at the end of the block; see `put_in_place`."""
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        yield part
        put_in_place(part, target, apart)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def put_in_place(work: str | Path, target: str | Path, apart: Container[str] = ()) -> None:
    """Write the manifest of a finished directory and rename it to `target`.

    Both are on one file system. An older `target` is removed once the new one is complete.
    apart: see `write_manifest`.
    """
    work, target = Path(work), Path(target)
    write_manifest(work, apart)
    if target.exists():
        old = target.with_name(f".{target.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
        work.rename(target)
        _sync(target.parent)
        shutil.rmtree(old)
    else:
        work.rename(target)
        _sync(target.parent)
