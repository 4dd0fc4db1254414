"""Why something does not load, in one line of our own words.

What torch, pydantic and transformers say runs over many lines, names paths and advises what cannot
be done here. Of their errors only the name is passed on.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile

from pydantic import ValidationError

from trimtab.errors import TrimtabError
from trimtab_models.files import Unusable
from trimtab_models.manifest import BrokenCheckpoint

PLACE = "TRIMTAB_REASON"
"""Environment variable: the file for the reason that an engine's process cannot start."""
LONGEST = 500


def why(error: BaseException) -> str:
    """What was wrong with a scorer's files."""
    if isinstance(error, TrimtabError | Unusable | BrokenCheckpoint):
        return str(error)
    if isinstance(error, FileNotFoundError) and error.errno is None:  # ours: no call of the system
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"its files cannot be read ({error.strerror})."
    return f"its files cannot be served as a scorer ({type(error).__name__})."


def fields(error: ValidationError, most: int = 3) -> str:
    """What was wrong with which fields of a configuration, never their values."""
    details = error.errors(include_url=False, include_context=False, include_input=False)
    shown = [
        ": ".join(filter(None, (".".join(map(str, detail["loc"])), detail["msg"])))
        for detail in details[:most]
    ]
    more = f" (and {len(details) - most} more)" if len(details) > most else ""
    return "; ".join(shown) + more


def brief(error: BaseException) -> str:
    """What vLLM says of flags and of the base, which are its own, in one line."""
    if isinstance(error, ValidationError):
        return fields(error)
    text = " ".join(str(error).split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


@contextmanager
def heard() -> Iterator[Callable[[], str | None]]:
    """Hear from the engine's processes, which begin within, why scorers did not load."""
    with NamedTemporaryFile("r", encoding="utf-8", prefix="trimtab-") as file:
        before = os.environ.get(PLACE)
        os.environ[PLACE] = file.name
        try:
            yield lambda: file.read().strip() or None
        finally:
            os.environ.pop(PLACE)
            if before is not None:
                os.environ[PLACE] = before


def tell(error: TrimtabError) -> None:
    """Leave the reason for the process that waits for the engine, if one does."""
    if place := os.environ.get(PLACE):
        Path(place).write_text(error.message, encoding="utf-8")
