"""Where results go: only what the same work made is touched, and that is checked before any work.

A directory that grows (an arena, a sweep, a world) carries a mark: which work makes it. One that
appears whole (a checkpoint) needs a place that is free: absent, or an empty directory. A file is
written beside its place, and takes it by a rename.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

MARK = ".trimtab.json"
T = TypeVar("T")


class InTheWay(OSError):
    """Something stands where a result is to go; the message says what, and what to do."""


class Damaged(ValueError):
    """A file of ours does not hold what we write into it."""


def place(path: str | Path) -> Path:
    """The absolute path that `path` means, links followed.

    Raises:
        InTheWay: its links lead nowhere.
    """
    try:
        return Path(path).expanduser().resolve()
    except (OSError, RuntimeError) as error:  # a loop of links
        raise InTheWay(f"{path} leads nowhere: {error}.") from None


def made(folder: Path, by: Mapping[str, Any]) -> bool:
    """Whether a directory is of the work `by`; if not, it is absent or empty.

    Args:
        folder: see `place`.
        by: plain JSON values; of the directory's mark, only these are compared.

    Raises:
        InTheWay: it is a file, or holds something of anybody else, or of other work.
        Damaged: its mark cannot be read.
    """
    if not (folder / MARK).is_file():
        vacant(folder)
        return False
    if changed := changes(read(folder / MARK, dict[str, Any]), {**by}, partly=True):
        raise InTheWay(
            f"{folder} was made with other settings; changed since: {changed}. Choose another "
            "directory, or remove that one to start anew."
        )
    return True


def vacant(folder: Path) -> None:
    """Make sure that a directory is absent or empty.

    Raises:
        InTheWay: it is not.
    """
    if os.path.lexists(folder) and not folder.is_dir():
        raise InTheWay(f"{folder} is not a directory; choose another place, or move it away.")
    held = sorted(entry.name for entry in folder.iterdir()) if folder.exists() else []
    if held:
        names = ", ".join(held[:3]) + (f" and {len(held) - 3} more" if len(held) > 3 else "")
        raise InTheWay(
            f"{folder} is not empty, and this command did not make what it holds ({names}); choose "
            "another directory, or move that away."
        )


def check(folder: Path, by: Mapping[str, Any]) -> bool:
    """As `made`, and whether it can be written to.

    Raises:
        as `made` and `writable`.
    """
    there = made(folder, by)
    writable(folder)
    return there


def claim(folder: str | Path, by: Mapping[str, Any]) -> Path:
    """Make a directory that grows, or take it up again.

    Raises:
        as `check`.
    """
    where = place(folder)
    if not check(where, by):
        where.mkdir(parents=True, exist_ok=True)
        mark(where, by)
    return where


def mark(folder: Path, by: Mapping[str, Any]) -> None:
    """Say in a directory which work makes it."""
    put(folder / MARK, json.dumps(by, indent=1, ensure_ascii=False) + "\n")


def apart(folder: Path, inputs: Mapping[str, str | Path | None]) -> None:
    """Make sure that nothing lies in a directory, or is it, that is needed.

    Args:
        folder: see `place`.
        inputs: what is read: its name → a path, or the name of something elsewhere.

    Raises:
        InTheWay: an input, the working directory or the user's home lies there.
    """
    kept = {**inputs, "the working directory": Path.cwd(), "your home": Path("~").expanduser()}
    for name, given in kept.items():
        for path in (str(given), str(given).partition(":")[0]) if given else ():
            if os.path.exists(path) and place(path).is_relative_to(folder):
                raise InTheWay(f"{folder} is where {name} is; choose another place for the result.")


def free(folder: Path) -> None:
    """Make sure that a directory can take the place of `folder`.

    Raises:
        InTheWay: it cannot.
    """
    if os.path.ismount(folder):
        raise InTheWay(f"{folder} is a mount point, which stays; choose a directory inside it.")
    writable(folder.parent)


def writable(folder: Path) -> None:
    """Make sure that files can be made in a directory, or in the lowest parent that is there.

    Raises:
        InTheWay: they cannot.
    """
    there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise InTheWay(
            f"nothing can be written into {there} ({error.strerror}); choose another place."
        ) from None


def file(path: str | Path) -> Path:
    """The path of a file that can be written, new or not; its directory is there.

    Raises:
        InTheWay: it is not a file, or its directory is missing or not writable.
    """
    where = place(path)
    if where.exists() and not where.is_file():
        raise InTheWay(f"{where} is not a file; choose another place, or move it away.")
    if not where.parent.is_dir():
        raise InTheWay(f"there is no directory {where.parent}; make it first.")
    if where.exists() and not os.access(where, os.W_OK):
        raise InTheWay(f"{where} cannot be written; choose another place.")
    writable(where.parent)
    return where


@contextmanager
def writing(target: Path) -> Iterator[Path]:
    """A file that takes the place of `target` once it is written."""
    part = target.with_name(f".{target.name}.part")
    try:
        yield part
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def put(target: Path, text: str) -> None:
    """Write a file that appears whole or not at all."""
    with writing(target) as part:
        part.write_text(text, encoding="utf-8")


def read(path: Path, kind: type[T], cure: str = "put back a copy, or remove it") -> T:
    """The content of a JSON file of ours.

    Raises:
        Damaged: it is not JSON, a key comes twice, or it is not of the kind; `cure`: what to do.
        OSError: it cannot be read.
    """
    if path.exists() and not path.is_file():  # a pipe would never end
        raise Damaged(f"{path} is damaged: it is not a file; {cure}.")
    try:
        content = json.loads(path.read_bytes(), object_pairs_hook=_once)
        return TypeAdapter(kind).validate_python(content)
    except ValidationError:
        why = "it does not hold what was written into it"
    except (ValueError, RecursionError):
        why = "not JSON"
    raise Damaged(f"{path} is damaged: {why}; {cure}.")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key comes twice")
    return found


def changes(old: Mapping[str, Any], new: Mapping[str, Any], *, partly: bool = False) -> str:
    """What differs between two sets of settings, as words; empty if nothing does.

    partly: leave out what only `old` has.
    """
    now = json.loads(json.dumps(new))
    return ", ".join(
        "the data"
        if key in ("data", "validation data")
        else f"{key} ({old.get(key)!r} then, {now.get(key)!r} now)"
        for key in sorted(now if partly else {*old, *now})
        if old.get(key) != now.get(key)
    )
