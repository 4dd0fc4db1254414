"""Contract tests for scorer authors: the rules for scorers of every family.

def test_my_scorer():
    check_scorer(MyScorer(...), vocab_size=32000)
"""

import numpy as np
import torch

from trimtab.scorers.base import Scorer
from trimtab.scoring.pool import Ids


def check_scorer(
    scorer: Scorer, *, vocab_size: int, longest: int = 24, seed: int = 0, tolerance: float = 1e-4
) -> None:
    """Check the contract of a scorer on random rows.

    Scores are one finite float32 for each candidate, packed in row order, and a pure function of
    (prefix, candidate, strength): the other rows of the batch, the order of the candidates, the
    row's key, earlier calls and `forget` must not change them.

    Raises:
        AssertionError: names the broken rule.
    """
    rng = np.random.default_rng(seed)
    prefixes = [rng.integers(vocab_size, size=n) for n in rng.integers(1, longest, size=6)]
    prefixes.append(np.append(prefixes[0], rng.integers(vocab_size)))
    prefixes.append(prefixes[1].copy())
    candidates = [rng.permutation(vocab_size)[: rng.integers(1, 6)] for _ in prefixes]
    copies = [p.copy() for p in prefixes]
    keys = list(range(100, 100 + len(prefixes)))
    strengths = [0.0, *rng.normal(scale=4, size=len(prefixes) - 1).tolist()]

    scores = scorer.score(keys, prefixes, candidates, strengths)
    assert isinstance(scores, torch.Tensor), "scores are a torch tensor"
    together = scores.cpu()
    assert together.shape == (sum(map(len, candidates)),), "one score for each candidate, packed"
    assert together.dtype == torch.float32, "scores are float32"
    assert torch.isfinite(together).all(), "scores are finite"
    assert all(map(np.array_equal, prefixes, copies)), "prefixes are not modified"
    expected = list(together.split([len(c) for c in candidates]))

    def same(name: str, row: int, key: int, prefix: Ids, order: Ids) -> None:
        actual = scorer.score([key], [prefix], [candidates[row][order]], [strengths[row]]).cpu()
        close = torch.allclose(
            actual, expected[row][torch.from_numpy(order)], rtol=tolerance, atol=tolerance
        )
        assert close, f"a score must not depend on {name}"

    for row, prefix in enumerate(prefixes):
        natural = np.arange(len(candidates[row]))
        same("the rest of the batch", row, keys[row], prefix, natural)
        same("the order of the candidates", row, keys[row], prefix, natural[::-1].copy())
        same("the row's key", row, 1000 + row, prefix, natural)
        # A row that shrinks, or is replaced under the same key, must not depend on its past.
        scorer.score([keys[row]], [rng.integers(vocab_size, size=longest)], [np.arange(2)], [1.0])
        same("what the row was before", row, keys[row], prefix, natural)
        scorer.forget(keys[row])
        same("what was forgotten", row, keys[row], prefix, natural)
