"""Measures that predict, before any steering, whether a scorer will steer well.

Pure functions of prefix scores (see scoring.py), rewards of whole completions, and their prompts.
"""

from trimtab_models.validation.credit import Credit, credit
from trimtab_models.validation.estimates import Estimate
from trimtab_models.validation.inheritance import Continued, Inheritance, inheritance
from trimtab_models.validation.intervals import Interval
from trimtab_models.validation.known import Correlation, Known, known
from trimtab_models.validation.odds import Compared, Games, PrefixWins, play, prefix_wins
from trimtab_models.validation.order import PrefixAuc, prefix_auc
from trimtab_models.validation.ranks import (
    LengthCorrelation,
    ReciprocalRank,
    length_correlation,
    token_mean_reciprocal_rank,
)
from trimtab_models.validation.values import Bin, ValueAgreement, value_agreement

__all__ = [
    "Bin",
    "Compared",
    "Continued",
    "Correlation",
    "Credit",
    "Estimate",
    "Games",
    "Inheritance",
    "Interval",
    "Known",
    "LengthCorrelation",
    "PrefixAuc",
    "PrefixWins",
    "ReciprocalRank",
    "ValueAgreement",
    "credit",
    "inheritance",
    "known",
    "length_correlation",
    "play",
    "prefix_auc",
    "prefix_wins",
    "token_mean_reciprocal_rank",
    "value_agreement",
]
