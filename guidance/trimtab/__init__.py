"""Trimtab: steer a frozen language model at decode time with small scorers.

`import trimtab` is fast: names that need torch are imported when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from trimtab.config import GuidanceConfig, ScorerSpec
from trimtab.errors import (
    InvalidGuidance,
    ScorerFault,
    ScorerLoadError,
    TrimtabError,
    UnknownScorer,
)
from trimtab.params import GuidanceParams

if TYPE_CHECKING:
    from trimtab.guide import Guide
    from trimtab.loading import load_scorers
    from trimtab.local import Guidance
    from trimtab.rows import Row
    from trimtab.scorers import NetworkScorer, Scorer
    from trimtab.testing import check_scorer
    from trimtab_models import demo

__all__ = [
    "Guidance",
    "GuidanceConfig",
    "GuidanceParams",
    "Guide",
    "InvalidGuidance",
    "NetworkScorer",
    "Row",
    "Scorer",
    "ScorerFault",
    "ScorerLoadError",
    "ScorerSpec",
    "TrimtabError",
    "UnknownScorer",
    "check_scorer",
    "demo",
    "load_scorers",
]

_LATE = {
    "Guidance": "trimtab.local",
    "Guide": "trimtab.guide",
    "NetworkScorer": "trimtab.scorers",
    "Row": "trimtab.rows",
    "Scorer": "trimtab.scorers",
    "check_scorer": "trimtab.testing",
    "load_scorers": "trimtab.loading",
}
"""Names that need torch, and the modules that have them."""


def __getattr__(name: str) -> Any:
    """Import a late name when it is first used."""
    if name == "demo":
        return importlib.import_module(".demo", "trimtab_models")
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_LATE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
