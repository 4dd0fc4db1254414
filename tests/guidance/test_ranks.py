"""What the leader did to the logits is done on the other ranks, bit for bit."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from trimtab.adapters.vllm import ranks
from trimtab.guide import Guide
from trimtab.params import GuidanceParams
from trimtab.rows import Row
from trimtab.scorers import FunctionScorer

VOCAB, BATCH = 50, 9


def raises(ids):
    raise RuntimeError("no")


def guided(rng):
    """Some rows of a batch, of all kinds, and a guide."""
    kinds = [
        {"beta": 2.0, "k": 4},
        {"beta": -3.0, "k": 60, "mass": 1.0},
        {"tail": "truncate", "k": 7},
        {"beta": 0.0},
        {"scorers": {"raises": 1.0}},  # ends: only its stop token is left
        {"scorers": {"raises": 1.0}, "on_error": "unguided"},
    ]
    scorers = {
        "sine": FunctionScorer(lambda ids: math.sin(ids[-1])),
        "raises": FunctionScorer(raises),
    }
    rows = []
    for place, fields in zip(rng.permutation(BATCH)[: len(kinds)].tolist(), kinds, strict=True):
        params = GuidanceParams.parse({"scorers": {"sine": 1.0}, **fields}).resolve(scorers)
        prefix = rng.integers(VOCAB, size=5)
        rows.append((place, Row(params, 5, stop_token=3, prefix=prefix)))
    return sorted(rows, key=lambda pair: pair[0]), Guide(scorers)


@pytest.mark.parametrize("seed", range(10))
def test_ranks_end_with_the_same_logits(seed, monkeypatch):
    rng = np.random.default_rng(seed)
    before = 2 * torch.randn(BATCH, VOCAB, generator=torch.Generator().manual_seed(seed))
    before[:, 40:] = -torch.inf  # a grammar
    (leader, follower), messages = (before.clone() for _ in range(2)), []
    rows, guide = guided(rng)
    ks = {place: row.params.k for place, row in rows}
    done = []
    guide.step(leader, rows, done=done)

    def group(broadcast):
        monkeypatch.setattr(ranks, "get_tp_group", lambda: SimpleNamespace(broadcast=broadcast))

    group(lambda tensor, src: messages.append(tensor.clone()))
    ranks.share(leader, ks, done)
    group(lambda tensor, src: tensor.copy_(messages.pop(0)))
    ranks.share(follower, ks, None)
    assert torch.equal(follower, leader)
    assert not messages
    changed = (leader != before).any(-1).nonzero()[:, 0].tolist()
    steered = [p for p, row in rows if row.params.beta and row.params.on_error == "fail"]
    assert changed == steered  # every kind but the two that leave the base alone


def test_little_is_sent_but_for_whole_vocabularies(monkeypatch):
    sizes = []
    group = SimpleNamespace(broadcast=lambda tensor, src: sizes.append(tuple(tensor.shape)))
    monkeypatch.setattr(ranks, "get_tp_group", lambda: group)
    ranks.share(torch.zeros(4, VOCAB), {0: 5, 2: 3, 3: "all"}, [])
    assert sizes == [(1, VOCAB), (2, 1 + 2 * 5)]
