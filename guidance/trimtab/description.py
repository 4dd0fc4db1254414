"""Status of a guide's scorers, as plain data."""

from typing import Any

from trimtab.guide import Guide
from trimtab.scorers.base import Scorer
from trimtab.scoring import meters

INFO_FIELDS = {"objective", "mean", "deviation", "base_model", "prefix_auc", "to_go"}
COUNTS = ("parameters", "tokens_forwarded", "flops")


def describe(guide: Guide) -> list[dict[str, Any]]:
    """A mapping for each scorer, ready for JSON.

    `meters` has numbers for metrics: the use of its prefix pools, and a histogram of the seconds of
    its calls (scoring/meters.py).
    """
    return [
        {
            "name": name,
            "family": scorer.family,
            "distributional": scorer.distributional,
            "whole": scorer.whole,
            "ensemble": scorer.ensemble,
            "reads": scorer.reads,
            **scorer.info.model_dump(include=INFO_FIELDS),
            **_counts(guide, name, scorer),
            "faults": guide.registry.faults[name],
            "overruns": guide.registry.calls.status(scorer).overruns,
            "suspended": guide.registry.calls.status(scorer).suspended,
            "last_error": guide.registry.last_error.get(name),
            "meters": _meters(guide, name, scorer),
        }
        for name, scorer in guide.registry.scorers.items()
    ]


def _counts(guide: Guide, name: str, scorer: Scorer) -> dict[str, int]:
    """The scorer's own counts; zeros while it does not answer."""

    def read() -> dict[str, int]:
        return {count: getattr(scorer, count) for count in COUNTS}

    return guide.registry.calls.run(name, scorer, read, dict.fromkeys(COUNTS, 0))


def _meters(guide: Guide, name: str, scorer: Scorer) -> dict[str, Any]:
    """See scoring/meters.py."""

    def read() -> dict[str, int]:
        return meters.pool(scorer.prefix_pools)

    seconds = guide.registry.timings.of[name]
    return {
        "pool": guide.registry.calls.run(name, scorer, read, meters.pool(())),
        "seconds": {"counts": list(seconds.counts), "sum": seconds.sum},
    }
