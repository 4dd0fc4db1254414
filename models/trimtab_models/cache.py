"""The cache directory: what can be made again, such as a fetched model and a base's states."""

import os
from pathlib import Path

VARIABLE = "TRIMTAB_CACHE"


def directory() -> Path:
    """TRIMTAB_CACHE if it is set, else `trimtab` in XDG_CACHE_HOME or ~/.cache."""
    user = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get(VARIABLE) or Path(user) / "trimtab").expanduser()
