"""SmolLM2-135M-Instruct, a real base model of 135 million parameters (Apache-2.0).

Its weights are not part of this package: `fetch.fetch` places them in the user's cache. Importing
this module loads no network and no torch.
"""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

__all__ = ["NAME", "REPOSITORY", "scorers"]

NAME = "smollm2"
LIBRARIES = {"kindness": "vaderSentiment", "plainness": "textstat", "brevity": None}
"""Rewards of `rewards.py`, and the library that each needs."""
REPOSITORY = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""The model's name on the hub."""


def scorers() -> dict[str, Mapping[str, Any]]:
    """Scorers that are served with it: name → the fields of a trimtab.config.ScorerSpec.

    Those whose library is missing, which the extra `real` installs, are left out.
    """
    return {
        name: {"path": f"{__name__}.rewards:{name}", "family": "function", "reads": "pair"}
        for name, library in LIBRARIES.items()
        if library is None or find_spec(library)
    }
