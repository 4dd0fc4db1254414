"""A user's taste: signed weights over scorers, from a handful of comparisons of answers."""

from trimtab.taste.comparisons import Candidate, Comparison, Pair, Question
from trimtab.taste.fitting import LEVEL, Strength, Taste, learn, pairs_of

__all__ = [
    "LEVEL",
    "Candidate",
    "Comparison",
    "Pair",
    "Question",
    "Strength",
    "Taste",
    "learn",
    "pairs_of",
]
