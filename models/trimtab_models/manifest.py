"""A directory that can be trusted: SHA-256 of its files, and a rename that happens wholly or not.

The order is that of any careful save: files into a directory beside the target, each flushed to the
disk; MANIFEST.json last; then the rename; then the parent directory flushed. Whatever moment a kill
or a power cut chooses, the target is the old one, the new one, or absent, and never half of one.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

NAME = "MANIFEST.json"
FREE = "README.md"
"""The model card is no part of what is computed: its author may go on writing it."""


class BrokenCheckpoint(ValueError):
    """A directory is not what its manifest says; the message names the file."""


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


def write_manifest(directory: str | Path) -> None:
    """Flush every file below `directory` to the disk, then write and flush its manifest."""
    top = Path(directory)
    entries = {}
    for file in _files(top):
        _sync(file)
        if file.name == FREE:
            continue
        entries[file.relative_to(top).as_posix()] = {
            "bytes": file.stat().st_size,
            "sha256": _digest(file),
        }
    with open(top / NAME, "w", encoding="utf-8") as stream:
        json.dump(entries, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    for folder in {file.parent for file in _files(top)} | {top}:
        _sync(folder)


def verify(directory: str | Path) -> None:
    """Compare a directory with its manifest.

    Raises:
        BrokenCheckpoint: there is no manifest, or a file is missing, of another length or of other
            bytes than it says. Files that it does not name are of no concern.
    """
    top = Path(directory)
    try:
        entries = json.loads((top / NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BrokenCheckpoint(f"{top} has no {NAME}: its save was never completed.") from None
    except ValueError:
        raise BrokenCheckpoint(f"{top / NAME} is damaged: not JSON.") from None
    for name, entry in entries.items():
        file = top / name
        if not file.is_file():
            raise BrokenCheckpoint(f"{file} is missing, though {NAME} names it.")
        if (size := file.stat().st_size) != entry["bytes"]:
            raise BrokenCheckpoint(f"{file} has {size} bytes; {NAME} says {entry['bytes']}.")
        if _digest(file) != entry["sha256"]:
            raise BrokenCheckpoint(f"{file} is damaged: its SHA-256 is not the one in {NAME}.")


def publish(work: str | Path, target: str | Path) -> None:
    """Put a finished directory in the place of `target`; both lie on one file system.

    Writes the manifest. An older `target` is removed once the new one is complete.
    """
    work, target = Path(work), Path(target)
    write_manifest(work)
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
