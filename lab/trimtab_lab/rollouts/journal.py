"""JSON Lines files that a later run can resume, however the earlier run stopped.

FILE.meta.json, beside FILE, holds the settings. Resuming with different settings is refused. An
incomplete last line is cut off; all lines before it are complete. Files that this module did not
write are not changed.
"""

import fcntl
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from trimtab.errors import TrimtabError
from trimtab_models import outputs


class Journal:
    """An output file, open for appending, and the records already in it.

    Args:
        path: the file; its directory must exist.
        settings: the settings of the run, as plain JSON values.
        keys: integer fields that every record has.

    Raises:
        TrimtabError: the file has other settings, is not ours, is in use, or has an invalid line.
        InTheWay: (an OSError) it cannot be written, or is not a file.
    """

    def __init__(
        self, path: str | Path, settings: Mapping[str, Any], keys: Sequence[str] = ("index",)
    ) -> None:
        self.path, self.meta = outputs.file(path), outputs.file(f"{path}.meta.json")
        self._keys, self._new, self._claimed = keys, not self.path.exists(), False
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            raise TrimtabError(f"{path} is being written by another process.") from None
        try:
            self.records, size = self._read()
            self._claim(json.loads(json.dumps(settings)))
            os.truncate(self._file, size)
        except BaseException:
            self._close()
            raise

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Write records in one piece; the operating system has them when this returns."""
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        left = memoryview(lines.encode())
        while left:
            left = left[os.write(self._file, left) :]

    def _read(self) -> tuple[list[dict[str, Any]], int]:
        """The complete records and their size in bytes; an incomplete record may follow."""
        content = self.path.read_bytes()
        size = content.rfind(b"\n") + 1
        records = []
        for number, line in enumerate(content[:size].splitlines(), 1):
            try:
                record = json.loads(line)
                valid = all(isinstance(record[key], int) for key in self._keys)
            except (ValueError, LookupError, TypeError, RecursionError):
                valid = False
            if not valid:
                raise self._invalid_line(number)
            records.append(record)
        if size < len(content) and content[size] != ord("{"):
            raise self._invalid_line(len(records) + 1)
        return records, size

    def _invalid_line(self, line: int) -> TrimtabError:
        return TrimtabError(
            f"{self.path}, line {line}: not a record of this command; choose another --out, or "
            "remove the line."
        )

    def _claim(self, settings: dict[str, Any]) -> None:
        """Write the settings of a new file; compare the settings of an existing one."""
        former: dict[str, Any] | None = None
        with suppress(FileNotFoundError, outputs.Damaged):
            former = outputs.read(self.meta, dict[str, Any])
        if os.fstat(self._file).st_size == 0:
            if self.meta.exists() and (former is None or former.keys() != settings.keys()):
                raise TrimtabError(
                    f"{self.meta} is not of this command, and the settings must be written there; "
                    "choose another --out, or move the file."
                )
            outputs.put(self.meta, json.dumps(settings, indent=2, ensure_ascii=False) + "\n")
            self._claimed = True
            return
        if former is None:
            raise TrimtabError(
                f"{self.path} exists, but no {self.meta.name} holds its settings; choose "
                "another --out."
            )
        differing = [
            name for name in {**former, **settings} if former.get(name) != settings.get(name)
        ]
        if differing:
            changes = ", ".join(f"{name} (was {former.get(name)!r})" for name in differing)
            raise TrimtabError(
                f"{self.path} was started with other settings: {changes[:500]}. Use the same "
                "settings to resume it, or choose another --out."
            )

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def _close(self) -> None:
        if self._new and os.fstat(self._file).st_size == 0:
            # Nothing was written: remove the files that this run created.
            self.path.unlink(missing_ok=True)
            if self._claimed:
                self.meta.unlink(missing_ok=True)
        os.close(self._file)
