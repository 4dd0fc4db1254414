"""Why something does not load, in one line of our own words.

What torch, pydantic and transformers say runs over many lines, names paths and advises what cannot
be done here. Of their errors only the name is passed on.
"""

from pydantic import ValidationError

from trimtab.errors import TrimtabError
from trimtab_models.files import Unusable
from trimtab_models.manifest import BrokenCheckpoint


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
