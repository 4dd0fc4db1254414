"""What a guide counts for an operator: the use of its pools, and the seconds of each request."""

import numpy as np
import pytest
import torch

from trimtab import drafts
from trimtab.guide import Guide
from trimtab.params import GuidanceParams
from trimtab.rows import Row
from trimtab.scorers.base import Scorer
from trimtab.scoring import meters
from trimtab.scoring.pool import PATIENCE, PrefixPool
from trimtab_models.checkpoint import ScorerInfo

VOCAB = 9


def pool_of(slots):
    return PrefixPool(layers=1, kv_heads=1, head_dim=1, max_bytes=8 * (slots + 1), temporary=64)


def enter(pool, key, length):
    """One step of one row, with tokens of its own."""
    tokens = 1000 * key + np.arange(length)
    pool.begin([key], [tokens])
    pool.reconcile(key, tokens)
    pool.extend(key, tokens, set(), first=0)


def test_a_pool_counts_what_it_drops_and_what_has_no_room():
    pool = pool_of(10)
    enter(pool, 1, 4)
    enter(pool, 2, 4)
    assert meters.pool([pool]) == {"slots": 10, "used": 8, "ended": 0, "cut": 0, "overflow": 0}
    enter(pool, 3, 5)  # two of its own, and three without a slot
    assert meters.pool([pool]) == {"slots": 10, "used": 10, "ended": 0, "cut": 0, "overflow": 3}
    pool.now += PATIENCE * pool.gap + 1  # so that all of them have ended
    enter(pool, 5, 3)  # takes the place of row 1
    assert meters.pool([pool]) == {"slots": 10, "used": 9, "ended": 4, "cut": 0, "overflow": 3}
    tokens = 4000 + np.arange(8)
    pool.begin([4], [tokens])
    pool.reconcile(4, tokens)
    pool.extend(4, tokens, set())  # who cannot do without slots cuts row 5
    counted = meters.pool([pool])
    assert counted == {"slots": 10, "used": 10, "ended": 10, "cut": 1, "overflow": 3}
    assert meters.pool([pool, pool]) == {key: 2 * value for key, value in counted.items()}
    assert meters.pool(()) == dict.fromkeys(meters.POOL, 0)


class Late(Scorer):
    """A step of the pretended clock long."""

    family = "late"

    def __init__(self, clock, seconds):
        super().__init__(ScorerInfo())
        self.clock, self.seconds = clock, seconds

    def score(self, keys, prefixes, candidates, strengths, prompts=()):
        self.clock[0] += self.seconds
        return torch.cat([torch.from_numpy(group).float() for group in candidates])

    keeps_time = True


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(meters.time, "perf_counter", lambda: now[0])
    return now


def guided(guide, rows):
    logits = torch.zeros(len(rows), VOCAB)
    guide.step(logits, list(enumerate(rows)))


def test_a_request_notes_the_seconds_of_its_steps(clock):
    guide = Guide({"slow": Late(clock, 0.2), "fast": Late(clock, 0.003)})
    params = GuidanceParams(scorers={"slow": 1.0, "fast": 1.0}, k=4, mass=1.0)
    rows = [Row(params, 2, record_key=key) for key in "ab"]
    for length in (2, 3, 4):
        for row in rows:
            row.prefix = np.arange(length)
        guided(guide, rows)
    slow, fast = (guide.registry.timings.of[name] for name in ("slow", "fast"))
    assert (sum(slow.counts), sum(fast.counts)) == (3, 3)
    assert (slow.sum, fast.sum) == pytest.approx((0.6, 0.009))
    expected = {"slow": pytest.approx(0.6), "fast": pytest.approx(0.009)}
    answer = [2, 3, 4]
    plain, timed = (
        guide.records.report("a", [0, 1], [answer], False, final=False, timed=timed)[0]
        for timed in (False, True)
    )
    assert timed.pop("scorer_seconds") == expected
    assert timed == plain


def test_rows_after_draft_tokens_do_not_count_twice(clock):
    guide = Guide({"slow": Late(clock, 0.25)})
    row = Row(GuidanceParams(scorers={"slow": 1.0}, k=4, mass=1.0), 2, record_key="a")
    row.prefix = np.arange(2)
    guided(guide, [row, *drafts.ahead(row, [3, 4])])
    assert row.seconds == {"slow": 0.25}


def test_a_name_that_is_no_longer_served_is_forgotten(clock):
    guide = Guide({"slow": Late(clock, 0.25)})
    row = Row(GuidanceParams(scorers={"slow": 1.0}, k=4, mass=1.0), 2)
    row.prefix = np.arange(2)
    guided(guide, [row])
    guide.registry.serve("slow", None)
    assert not guide.registry.timings.of
