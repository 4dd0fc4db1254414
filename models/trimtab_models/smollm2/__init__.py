"""SmolLM2-135M-Instruct, a real base model of 135 million parameters (Apache-2.0).

Its weights are not part of this package: `fetch.fetch` places them in the user's cache. Importing
this module loads no network and no torch.
"""

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from trimtab_models import cache, manifest, outputs

__all__ = ["NAME", "PROBES", "REPOSITORY", "functions", "probes", "shelf", "shelf_mark"]

NAME = "smollm2"
PROBES = ("kindness-probe", "plainness-probe", "brevity-probe", "instructions-probe")
"""Scorers of it that `trimtab demo train` makes."""
LIBRARIES = {"kindness": "vaderSentiment", "plainness": "textstat", "brevity": None}
"""Rewards of `rewards.py`, and the library that each needs."""
REPOSITORY = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""The model's name on the hub."""


def functions() -> dict[str, Mapping[str, Any]]:
    """Functions that are served with it: name → the fields of a trimtab.config.ScorerSpec.

    Those whose library is missing, which the extra `real` installs, are left out.
    """
    return {
        name: {"path": f"{__name__}.rewards:{name}", "family": "function", "reads": "pair"}
        for name, library in LIBRARIES.items()
        if library is None or find_spec(library)
    }


def shelf() -> Path:
    """The directory of its trained scorers, in the cache beside the model."""
    return cache.directory() / f"{NAME}-scorers"


def shelf_mark() -> dict[str, str]:
    """What the directory's mark holds: the base whose scorers they are.

    Raises:
        OSError: the base has not been fetched.
    """
    known = (cache.directory() / NAME / manifest.NAME).read_bytes()
    return {"scorers of": NAME, "base": hashlib.sha256(known).hexdigest()}


def probes() -> dict[str, Mapping[str, Any]]:
    """The trained scorers that exist for the base as it is now, as `functions`."""
    with suppress(OSError, ValueError):
        if outputs.is_result_of(shelf(), shelf_mark()):
            return {
                name: {"path": str(shelf() / name)} for name in PROBES if (shelf() / name).is_dir()
            }
    return {}
