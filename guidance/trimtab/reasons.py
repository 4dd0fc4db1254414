"""The reason for a load failure, in one line of our own.

Messages of torch, pydantic and transformers have many lines, name paths and give advice that does
not apply here. Only the class name of their errors is passed on.
"""

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile

from pydantic import ValidationError

from trimtab.errors import TrimtabError
from trimtab_models.files import Unusable
from trimtab_models.manifest import BrokenCheckpoint

PLACE = "TRIMTAB_REASON"
"""Environment variable: the file in which an engine's process writes why it cannot start."""
LONGEST = 500


def why(error: BaseException) -> str:
    """What was wrong with a scorer's files."""
    if isinstance(error, TrimtabError | Unusable | BrokenCheckpoint):
        return str(error)
    if isinstance(error, FileNotFoundError) and error.errno is None:  # ours, not from a system call
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        name = f"{Path(str(error.filename)).name}: " if error.filename else ""
        return f"its files cannot be read ({name}{error.strerror})."
    return f"its files cannot be served as a scorer ({type(error).__name__})."


def fields(error: ValidationError, known: Collection[str] = ()) -> str:
    """The first three invalid fields and the reasons, never the values.

    known: the fields of a request, whose other names are the client's input and stay unnamed.
    """
    details = error.errors(include_url=False, include_context=False, include_input=False)
    texts: dict[str, None] = {}
    for detail in details[:3]:
        places = [str(part) for part in detail["loc"]]
        if known:
            places = [place for place in places if place in known][:1]
        if known and detail["type"] == "extra_forbidden":
            texts[f"there is an unknown field; the fields are {', '.join(sorted(known))}"] = None
        else:
            texts[": ".join(filter(None, (".".join(places), detail["msg"])))] = None
    more = f" (and {len(details) - 3} more)" if len(details) > 3 else ""
    return "; ".join(texts) + more


def first(error: ValidationError, known: Collection[str]) -> str | None:
    """The first invalid field, if it is one of those of the request."""
    place = error.errors(include_url=False, include_context=False)[0]["loc"][:1]
    return str(place[0]) if place and place[0] in known else None


def brief(error: BaseException) -> str:
    """An error of vLLM about its own flags or the base, in one line."""
    if isinstance(error, ValidationError):
        return fields(error)
    text = " ".join(str(error).split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


@contextmanager
def collect_reason() -> Iterator[Callable[[], str | None]]:
    """Collect the reason for a load failure from engine processes that start in the block."""
    with NamedTemporaryFile("r", encoding="utf-8", prefix="trimtab-") as file:
        before = os.environ.get(PLACE)
        os.environ[PLACE] = file.name
        try:
            yield lambda: file.read().strip() or None
        finally:
            os.environ.pop(PLACE)
            if before is not None:
                os.environ[PLACE] = before


def report(error: TrimtabError) -> None:
    """Give the reason to the process that waits for the engine, if there is one."""
    if place := os.environ.get(PLACE):
        Path(place).write_text(error.message, encoding="utf-8")
