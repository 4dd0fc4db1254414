"""Where results go: a task overwrites only its own results, which is checked before it starts.

A directory that grows (an arena, a sweep, a world) contains a mark: the settings of the task that
writes it. A directory that appears at once (a checkpoint) needs a free place: absent, or an empty
directory. A file is written under a temporary name and then renamed.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from trimtab_models import strict_json
from trimtab_models.files import listed

MARK = ".trimtab.json"
T = TypeVar("T")


class InTheWay(OSError):
    """The place of a result is not free; the message says why, and what to do."""


class Damaged(ValueError):
    """A file that Trimtab wrote does not have the content that Trimtab writes."""


def place(path: str | Path) -> Path:
    """The absolute path of `path`, links followed.

    Raises:
        InTheWay: its links cannot be followed.
    """
    try:
        return Path(path).expanduser().resolve()
    except (OSError, RuntimeError) as error:  # a loop of links
        raise InTheWay(f"{path} cannot be resolved: {error}.") from None


def is_result_of(folder: Path, by: Mapping[str, Any]) -> bool:
    """Whether the task `by` made a directory; if not, the directory is absent or empty.

    Args:
        folder: see `place`.
        by: settings as plain JSON values; other keys of the directory's mark are ignored.

    Raises:
        InTheWay: it is a file, or another task or somebody else made its content.
        Damaged: its mark cannot be read.
    """
    if not (folder / MARK).is_file():
        check_empty(folder)
        return False
    if changed := changes(read(folder / MARK, dict[str, Any]), {**by}, partly=True):
        raise InTheWay(
            f"{folder} was made with other settings; changed since: {changed}. Choose another "
            "directory, or remove this one to start again."
        )
    return True


def check_empty(folder: Path) -> None:
    """Make sure that a directory is absent or empty.

    Raises:
        InTheWay: it is not.
    """
    if os.path.lexists(folder) and not folder.is_dir():
        raise InTheWay(f"{folder} is not a directory; choose another path, or move it away.")
    content = sorted(entry.name for entry in folder.iterdir()) if folder.exists() else []
    if content:
        raise InTheWay(
            f"{folder} is not empty, and this command did not make its content "
            f"({listed(content)}); choose another directory, or move the content away."
        )


def check(folder: Path, by: Mapping[str, Any]) -> bool:
    """As `is_result_of`; also makes sure that the directory can be written.

    Raises:
        as `is_result_of` and `check_writable`.
    """
    exists = is_result_of(folder, by)
    check_writable(folder)
    return exists


def claim(folder: str | Path, by: Mapping[str, Any]) -> Path:
    """Create a directory that grows, or reopen it.

    Raises:
        as `check`.
    """
    where = place(folder)
    if not check(where, by):
        where.mkdir(parents=True, exist_ok=True)
        mark(where, by)
    return where


def mark(folder: Path, by: Mapping[str, Any]) -> None:
    """Write the mark of the task that makes a directory."""
    put(folder / MARK, json.dumps(by, indent=1, ensure_ascii=False) + "\n")


def check_inputs(folder: Path, inputs: Mapping[str, str | Path | None]) -> None:
    """Make sure that a result's directory does not contain, and is not, anything needed.

    Args:
        folder: see `place`.
        inputs: the task's inputs: name → a path, or the name of something elsewhere.

    Raises:
        InTheWay: an input, the working directory or the user's home is there.
    """
    kept = {**inputs, "the working directory": Path.cwd(), "your home": Path("~").expanduser()}
    for name, value in kept.items():
        for path in (str(value), str(value).partition(":")[0]) if value else ():
            if os.path.exists(path) and place(path).is_relative_to(folder):
                raise InTheWay(
                    f"{folder} is or contains {name}; choose another place for the result."
                )


def check_free(folder: Path) -> None:
    """Make sure that a directory can take the place of `folder`.

    Raises:
        InTheWay: it cannot.
    """
    if os.path.ismount(folder):
        raise InTheWay(f"{folder} is a mount point; choose a directory inside it.")
    check_writable(folder.parent)


def check_writable(folder: Path) -> None:
    """Make sure that files can be made in a directory, or in its lowest existing parent.

    Raises:
        InTheWay: they cannot.
    """
    existing = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise InTheWay(
            f"nothing can be written into {existing} ({error.strerror}); choose another place."
        ) from None


def file(path: str | Path) -> Path:
    """The path of a new or old file that can be written; its directory exists.

    Raises:
        InTheWay: it is not a file, or its directory is missing or not writable.
    """
    where = place(path)
    if where.exists() and not where.is_file():
        raise InTheWay(f"{where} is not a file; choose another path, or move it away.")
    if not where.parent.is_dir():
        raise InTheWay(f"there is no directory {where.parent}; create it first.")
    if where.exists() and not os.access(where, os.W_OK):
        raise InTheWay(f"{where} cannot be written; choose another path.")
    check_writable(where.parent)
    return where


@contextmanager
def writing(target: Path) -> Iterator[Path]:
    """A temporary file that replaces `target` once it is written."""
    part = target.with_name(f".{target.name}.part")
    try:
        yield part
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def put(target: Path, text: str) -> None:
    """Write a file atomically."""
    with writing(target) as part:
        part.write_text(text, encoding="utf-8")


def read(path: Path, kind: type[T], cure: str = "restore a copy, or remove it") -> T:
    """The content of a JSON file that Trimtab wrote.

    Raises:
        Damaged: it is not JSON, has a duplicate key, or is not of the kind; the message ends with
            `cure`, the advice.
        OSError: it cannot be read.
    """
    if path.exists() and not path.is_file():  # reading a pipe would never end
        raise Damaged(f"{path} is damaged: it is not a file; {cure}.")
    try:
        content = json.loads(path.read_bytes(), object_pairs_hook=strict_json.unique)
        return TypeAdapter(kind).validate_python(content)
    except ValidationError:
        why = "its content is not what Trimtab writes"
    except (ValueError, RecursionError):
        why = "not JSON"
    raise Damaged(f"{path} is damaged: {why}; {cure}.")


def changes(old: Mapping[str, Any], new: Mapping[str, Any], *, partly: bool = False) -> str:
    """The differences between two sets of settings, as text; empty if there are none.

    partly: ignore keys that only `old` has.
    """
    now = json.loads(json.dumps(new))
    return ", ".join(
        "the data"
        if key in ("data", "validation data")
        else f"{key} ({old.get(key)!r} then, {now.get(key)!r} now)"
        for key in sorted(now if partly else {*old, *now})
        if old.get(key) != now.get(key)
    )
