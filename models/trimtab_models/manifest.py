"""A directory that can be trusted: SHA-256 of its files, and a rename that happens wholly or not.

The order is that of any careful save: files into a directory beside the target, each flushed to the
disk; MANIFEST.json last; then the rename; then the parent directory flushed. Whatever moment a kill
or a power cut chooses, the target is the old one, the new one, or absent, and never half of one.
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
"""The model card is no part of what is computed: its author may go on writing it."""


class BrokenCheckpoint(ValueError):
    """A directory is not what its manifest says; the message names the file."""


class Entry(BaseModel):
    """What a manifest says of a file."""

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

    apart: names of files, relative to `directory`, that the manifest does not speak of.
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
    """A directory's manifest: the path of each file, relative to it, and what it must be.

    Raises:
        BrokenCheckpoint: there is none, or it is damaged: it names nothing, or not as we write it.
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
        BrokenCheckpoint: its manifest is missing or damaged, or a file is missing, of another
            length or of other bytes than it says. Files that it does not name are of no concern.
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
    """Files of a directory that its manifest does not name, all of them if it has none.

    Raises:
        BrokenCheckpoint: its manifest is damaged.
    """
    top = Path(directory)
    ours = {NAME, FREE, *read(top)} if (top / NAME).exists() else set()
    files = (path for path in top.rglob("*") if path.is_symlink() or not path.is_dir())
    names = (path.relative_to(top).as_posix() for path in files)
    return sorted(name for name in names if name not in ours)


def replaceable(target: Path) -> None:
    """Make sure that nothing is lost if a directory takes the place of `target`.

    Raises:
        InTheWay: it holds files that its manifest does not name.
        BrokenCheckpoint: its manifest is damaged.
    """
    if os.path.lexists(target) and not target.is_dir():
        raise outputs.InTheWay(f"{target} is not a directory; choose another place.")
    if target.exists() and (others := foreign(target)):
        raise outputs.InTheWay(
            f"{target} holds {others[0]!r}, which is not of a checkpoint that was written there; "
            "choose another directory, or move it away."
        )


@contextmanager
def placing(target: Path) -> Iterator[Path]:
    """A new directory, which takes the place of `target` once it is filled; see `publish`."""
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        yield part
        publish(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def publish(work: str | Path, target: str | Path, apart: Container[str] = ()) -> None:
    """Put a finished directory in the place of `target`; both lie on one file system.

    Writes the manifest; see `write_manifest`. An older `target` is removed once the new one is
    complete.
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
