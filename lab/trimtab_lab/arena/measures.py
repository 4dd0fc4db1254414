"""Measures of answers other than the reward: diversity, words and computation."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from rouge_score.rouge_scorer import RougeScorer

COMPARED = 4  # answers per prompt that `diversity` compares with each other

_ROUGE = RougeScorer(["rougeL"])


def diversity(texts: Sequence[str], compared: int = COMPARED) -> float:
    """1 − mean ROUGE-L F1 over the pairs of a prompt's first answers; 0 if all are equal."""
    pairs = combinations(texts[:compared], 2)
    similarities = [_ROUGE.score(a, b)["rougeL"].fmeasure for a, b in pairs]
    return 1 - float(np.mean(similarities)) if similarities else float("nan")


def words(text: str) -> int:
    """Number of words, separated by spaces."""
    return len(text.split())


def flops(base_parameters: int, base_tokens: float, scorers: float) -> float:
    """2·parameters·tokens forwarded of the base, and what the scorers spent (VAS: T·m + tokens·s).

    A forward of one token costs about two operations per parameter; the cost of attention itself
    is ignored, as in the papers. A token in a prefix cache counts once, so a prompt counts once for
    all its answers. The tokens of scorers are measured behind such caches; the base is counted as
    if it had one.

    Args:
        base_parameters: parameters of the base.
        base_tokens: tokens of the prompts, and all sampled tokens, kept or not.
        scorers: operations of the scorers, see trimtab.scorers.Scorer.flops.
    """
    return 2 * base_parameters * base_tokens + scorers
