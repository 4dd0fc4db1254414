"""What is measured of answers beside their reward: likeness, words, and computation."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from rouge_score.rouge_scorer import RougeScorer

MOST = 4  # answers of a prompt that are compared with each other

_ROUGE = RougeScorer(["rougeL"])


def diversity(texts: Sequence[str]) -> float:
    """1 − mean ROUGE-L F1 over the pairs of a prompt's first answers; 0 if all are alike."""
    pairs = combinations(texts[:MOST], 2)
    likeness = [_ROUGE.score(a, b)["rougeL"].fmeasure for a, b in pairs]
    return 1 - float(np.mean(likeness)) if likeness else float("nan")


def words(text: str) -> int:
    """How many words, as a reader counts them."""
    return len(text.split())


def flops(base_parameters: int, base_tokens: float, scorers: Sequence[tuple[int, float]]) -> float:
    """2·Σ parameters·tokens forwarded, of the base and of each scorer (VAS: T·m + scorer tokens·s).

    A forward of one token costs about two operations a parameter; attention's own share is left
    aside, as in the papers. No token counts twice that a cache of prefixes holds, a prompt hence
    once for all its answers: scorers' tokens are what went through them, behind such caches, and
    the base is counted as if it had one.

    Args:
        base_parameters: of the base.
        base_tokens: of prompts, and all that was drawn, kept or not.
        scorers: (parameters, tokens) of each.
    """
    return 2 * (base_parameters * base_tokens + sum(p * tokens for p, tokens in scorers))
