"""What is served, and how it fares: a guide's scorers as plain data."""

from typing import Any

from trimtab.guide import Guide

TOLD = {"objective", "mean", "deviation", "base_model", "prefix_auc"}


def describe(guide: Guide) -> list[dict[str, Any]]:
    """A mapping for each scorer, ready for JSON."""
    return [
        {
            "name": name,
            "family": scorer.family,
            "reads": scorer.reads,
            **scorer.info.model_dump(include=TOLD),
            "parameters": scorer.parameters,
            "tokens_forwarded": scorer.tokens_forwarded,
            "faults": guide.faults[name],
            "last_error": guide.last_error.get(name),
        }
        for name, scorer in guide.scorers.items()
    ]
