"""What a server says of scorers whose checkpoints do not promise that they steer.

A full-sequence reward is arbitrary on prefixes (PARGS, arXiv 2406.07780, Theorem 1); the prefix-AUC
that validation stores with a checkpoint tells how often the order on prefixes is the final one.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from trimtab_models.info import STEERS


def doubts(found: Iterable[Mapping[str, Any]]) -> list[str]:
    """One line for each scorer whose prefix-AUC is known and low; see GuidanceWorker."""
    return [
        f"scorer '{scorer['name']}' has a prefix-AUC of {scorer['prefix_auc']:.3f}, below "
        f"{STEERS}: what it says of a prefix hardly tells how the answer ends, so it will "
        "steer badly. Train it on prefixes (trimtab train bradley-terry or td-lambda), on more "
        "data, or use it to rank whole answers."
        for scorer in found
        if scorer["prefix_auc"] is not None and scorer["prefix_auc"] < STEERS
    ]
