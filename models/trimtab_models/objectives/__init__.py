"""Training objectives, one module each."""

from collections.abc import Callable
from functools import partial

from trimtab_models.objectives.base import Objective
from trimtab_models.objectives.bradley_terry import BradleyTerry, FullBradleyTerry
from trimtab_models.objectives.cd_q import CdQ
from trimtab_models.objectives.distribution import Distribution, QDistribution
from trimtab_models.objectives.farma import Farma
from trimtab_models.objectives.fudge import Fudge
from trimtab_models.objectives.gains import Gains
from trimtab_models.objectives.genarm import GenArm
from trimtab_models.objectives.ilql import Ilql
from trimtab_models.objectives.plackett_luce import PlackettLuce
from trimtab_models.objectives.q_values import DuelingQ, QExact, QSampled
from trimtab_models.objectives.rad import Rad
from trimtab_models.objectives.soft_value import SoftValue
from trimtab_models.objectives.td_lambda import TdLambda
from trimtab_models.objectives.value_advantage import ValueAdvantage

__all__ = ["OBJECTIVES", "Objective"]


OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "bradley-terry": BradleyTerry,
    "bradley-terry-full": FullBradleyTerry,
    "plackett-luce": PlackettLuce,
    "farma": Farma,
    "genarm": GenArm,
    "td-lambda": TdLambda,
    "td-0": partial(TdLambda, decay=0.0),
    "cd-fudge": partial(TdLambda, decay=1.0),
    "gains": Gains,
    "fudge": Fudge,
    "rad": Rad,
    "q-exact": QExact,
    "q-sampled": QSampled,
    "dueling-q": DuelingQ,
    "value-advantage": ValueAdvantage,
    "cd-q": CdQ,
    "ilql": Ilql,
    "soft-value": SoftValue,
    "soft-td": partial(SoftValue, decay=0.0),
    "distribution": Distribution,
    "distribution-td": partial(Distribution, decay=0.0),
    "q-distribution": QDistribution,
}
"""Objectives by their name in `trimtab train NAME`; called with the options of a configuration."""
