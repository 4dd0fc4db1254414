"""SmolLM2-135M-Instruct, a real base model of 135 million parameters (Apache-2.0).

Its weights are not part of this package: `fetch.fetch` places them in the user's cache. Importing
this module loads no network and no torch.
"""

from collections.abc import Mapping
from typing import Any

__all__ = ["NAME", "REPOSITORY", "scorers"]

NAME = "smollm2"
REPOSITORY = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""The model's name on the hub."""


def scorers() -> dict[str, Mapping[str, Any]]:
    """Scorers that are served with it: name → the fields of a trimtab.config.ScorerSpec."""
    names = ("kindness", "plainness", "brevity")
    return {
        name: {"path": f"{__name__}.rewards:{name}", "family": "function", "reads": "pair"}
        for name in names
    }
