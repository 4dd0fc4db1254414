"""Scorer families behind one interface, and how a configuration becomes scorers."""

from trimtab.scorers.base import Scorer
from trimtab.scorers.composite import CompositeScorer
from trimtab.scorers.distribution import DistributionScorer
from trimtab.scorers.function import FunctionScorer
from trimtab.scorers.head import HeadScorer
from trimtab.scorers.log_ratio import LogRatioScorer
from trimtab.scorers.text import TextScorer
from trimtab.scorers.vocabulary import VocabularyScorer

__all__ = [
    "CompositeScorer",
    "DistributionScorer",
    "FunctionScorer",
    "HeadScorer",
    "LogRatioScorer",
    "Scorer",
    "TextScorer",
    "VocabularyScorer",
]
