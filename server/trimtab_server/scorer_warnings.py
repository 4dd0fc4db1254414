"""Warnings about scorers that are likely to steer badly.

A full-sequence reward is arbitrary on prefixes (PARGS, arXiv 2406.07780, Theorem 1). The prefix-AUC
that validation stores with a checkpoint measures how often the order of two prefixes' scores is the
order of the final scores.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from trimtab_models.info import STEERS


def prefix_warnings(statuses: Iterable[Mapping[str, Any]]) -> list[str]:
    """One line for each scorer whose prefix-AUC is known and low; see GuidanceWorker."""
    return [
        f"scorer '{scorer['name']}' has a prefix-AUC of {scorer['prefix_auc']:.3f}, below "
        f"{STEERS}: its prefix scores barely predict the final order, so it will steer "
        "badly. Train it on prefixes (trimtab train bradley-terry or td-lambda), on more "
        "data, or use it to rank whole answers."
        for scorer in statuses
        if scorer["prefix_auc"] is not None and scorer["prefix_auc"] < STEERS
    ]
