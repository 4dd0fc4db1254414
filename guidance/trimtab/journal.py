"""JSON Lines that grow, and are taken up again after any kind of end.

Beside FILE lies FILE.meta.json with the settings it is made with. Who takes it up with others is
refused, for the file would be of two kinds. A half-written last line is cut off; what stands before
it was written whole.
"""

import fcntl
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from trimtab.errors import TrimtabError


class Journal:
    """An output file, open for appending, and the records already in it.

    Raises:
        TrimtabError: it belongs to other settings or to somebody else, or holds a broken line.
        OSError: it cannot be written.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any]) -> None:
        self.path, self.meta = Path(path), Path(f"{path}.meta.json")
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.records = self._read()
            self._claim(dict(settings))
        except BlockingIOError:
            os.close(self._file)
            raise TrimtabError(f"{path} is being written by another process.") from None
        except BaseException:
            os.close(self._file)
            raise

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Write records, all at once; they are the system's when this returns."""
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        left = memoryview(lines.encode())
        while left:
            left = left[os.write(self._file, left) :]

    def _read(self) -> list[dict[str, Any]]:
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        records = []
        for number, line in enumerate(content[:whole].splitlines(), 1):
            try:
                record = json.loads(line)
                ours = isinstance(record["index"], int)
            except (ValueError, LookupError, TypeError):
                ours = False
            if not ours:
                raise TrimtabError(
                    f"{self.path}, line {number}: not a record of this command; choose another "
                    "--out, or take the line out."
                )
            records.append(record)
        if whole < len(content) and self.meta.exists():
            os.truncate(self._file, whole)
        return records

    def _claim(self, settings: dict[str, Any]) -> None:
        """Write the settings of a new file; compare those of one that has begun."""
        begun = os.fstat(self._file).st_size > 0
        if not begun:
            work = self.meta.with_name(f".{self.meta.name}.part")
            work.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n")
            work.replace(self.meta)
            return
        try:
            former = json.loads(self.meta.read_text())
        except (OSError, ValueError):
            raise TrimtabError(
                f"{self.path} exists, and no {self.meta.name} tells how it was made; "
                "choose another --out."
            ) from None
        differing = [
            name for name in {**former, **settings} if former.get(name) != settings.get(name)
        ]
        if differing:
            told = ", ".join(f"{name} (was {former.get(name)!r})" for name in differing)
            raise TrimtabError(
                f"{self.path} was begun with other settings: {told[:500]}. Give the same again to "
                "go on with it, or choose another --out."
            )

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._file)
