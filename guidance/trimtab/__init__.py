"""Trimtab: steer a frozen language model at decode time with small scorers."""

from trimtab.config import GuidanceConfig
from trimtab.errors import (
    InvalidGuidance,
    ScorerFault,
    ScorerLoadError,
    TrimtabError,
    UnknownScorer,
)
from trimtab.params import GuidanceParams

__all__ = [
    "GuidanceConfig",
    "GuidanceParams",
    "InvalidGuidance",
    "ScorerFault",
    "ScorerLoadError",
    "TrimtabError",
    "UnknownScorer",
]
