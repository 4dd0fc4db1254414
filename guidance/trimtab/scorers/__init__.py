"""Scorer families behind one interface; each class describes its family."""

from trimtab.errors import ScorerLoadError
from trimtab.scorers.base import NetworkScorer, Scorer
from trimtab.scorers.composite import CompositeScorer
from trimtab.scorers.distribution import DistributionScorer
from trimtab.scorers.function import FunctionScorer
from trimtab.scorers.head import HeadScorer
from trimtab.scorers.loader import Loader, imported
from trimtab.scorers.log_ratio import LogRatioScorer
from trimtab.scorers.probe import ProbeScorer
from trimtab.scorers.text import TextScorer
from trimtab.scorers.vocabulary import VocabularyScorer

__all__ = [
    "FAMILIES",
    "CompositeScorer",
    "DistributionScorer",
    "FunctionScorer",
    "HeadScorer",
    "Loader",
    "LogRatioScorer",
    "NetworkScorer",
    "ProbeScorer",
    "Scorer",
    "TextScorer",
    "VocabularyScorer",
    "family_class",
]

FAMILIES: dict[str, type[Scorer]] = {
    family.family: family
    for family in (
        HeadScorer,
        DistributionScorer,
        VocabularyScorer,
        ProbeScorer,
        LogRatioScorer,
        TextScorer,
        FunctionScorer,
        CompositeScorer,
    )
}
"""Every family, by its name."""


def family_class(name: str) -> type[Scorer]:
    """The class of a family, by its name, or by "package.module:Class" for your own family.

    Raises:
        ScorerLoadError: there is no such family.
    """
    if ":" not in name:
        if name not in FAMILIES:
            raise ScorerLoadError(
                f"there is no family '{name[:64]}'; the families are {', '.join(FAMILIES)}, and "
                "package.module:Class for your own"
            )
        return FAMILIES[name]
    family = imported(name)
    if not (isinstance(family, type) and issubclass(family, Scorer)):
        raise ScorerLoadError(f"{name} is not a subclass of trimtab.scorers.Scorer")
    return family
