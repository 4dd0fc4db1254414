"""What to ask next: the pair whose outcome is expected to tell most about the weights.

    gain(pair) = H( E_w P(outcome | w) ) − E_w H( P(outcome | w) )

in nats: the mutual information of the outcome and the weights (Lindley 1956; BALD, arXiv
1112.5745). It is large where the posterior is unsure who wins, and each weight is sure.
"""

import numpy as np

from trimtab.taste.posterior import Array, Posterior, features, log_odds

DRAWS = 2048
AT_ONCE = 256
"""Pairs computed at once, which bounds the memory."""


def expected_gain(posterior: Posterior, differences: Array) -> tuple[Array, Array]:
    """The gain of each pair in nats, and P(the first is preferred), [pairs] each.

    differences: [pairs, scorers], as for `posterior.fit`.
    """
    ties = len(posterior.mode) > posterior.dimensions
    draws = posterior.resampled(DRAWS)
    gains, firsts = [], []
    for start in range(0, len(differences), AT_ONCE):
        table = features(differences[start : start + AT_ONCE], ties)
        logs = log_odds(draws, table)  # [draws, pairs, outcomes]
        odds = np.exp(logs)
        mean = odds.mean(0)
        logs_of_mean = np.log(np.maximum(mean, np.finfo(float).tiny))
        gains.append(_entropy(mean, logs_of_mean) - _entropy(odds, logs).mean(0))
        firsts.append(mean[:, 0])
    empty = np.empty(0)
    return np.concatenate([empty, *gains]), np.concatenate([empty, *firsts])


def _entropy(odds: Array, logs: Array) -> Array:
    return np.asarray(-(odds * logs).sum(-1))
