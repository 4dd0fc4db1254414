"""Training objectives, one module each."""

from collections.abc import Callable

from trimtab_models.objectives.base import Objective
from trimtab_models.objectives.bradley_terry import BradleyTerry
from trimtab_models.objectives.td_lambda import TdLambda

__all__ = ["OBJECTIVES", "Objective"]


def _full_bradley_terry() -> Objective:
    return BradleyTerry(partial=False)


OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "bradley-terry": BradleyTerry,
    "bradley-terry-full": _full_bradley_terry,
    "td-lambda": TdLambda,
}
"""By the name of `trimtab train NAME`; called with the options of a configuration."""
