"""Records are bounded in memory: the oldest traces go first, then the oldest records."""

import sys
import tracemalloc

import numpy as np
import pytest

from trimtab import records
from trimtab.params import GuidanceParams
from trimtab.records import Records, size
from trimtab.rows import Row, RowFault, Step


def row(key, **params):
    made = Row(GuidanceParams(scorers={"a": 1.0}, **params), 2, record_key=key)
    made.prefix = np.array([1, 2], dtype=np.int64)
    return made


def step(k=0):
    numbers = [float(i) for i in range(1000, 1000 + k)]
    trace = {
        "candidates": [1000 + i for i in range(k)],
        "logprobs": [x + 0.1 for x in numbers],
        "tail": [2000 + i for i in range(8 if k else 0)],
        "tail_logprobs": [x + 0.4 for x in numbers[:8]],
        "guided_logprobs": [x + 0.2 for x in numbers],
        "scores": {"a": [x + 0.3 for x in numbers]},
    }
    return Step(0.5, k, trace if k else None)


def grow(kept, one, tokens, k=0):
    kept.keep(one)
    for _ in range(tokens):
        kept.add(one, len(one.prefix), step(k))
        one.prefix = np.append(one.prefix, 7)


@pytest.mark.parametrize("k", [0, 4, 32, 256])
def test_the_estimate_is_honest(k):
    tracemalloc.start()
    steps = {position: step(k) for position in range(200)}
    used = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert used / 2 < sum(map(size, steps.values())) < used * 2.5


def test_traces_go_first_and_the_oldest_of_them(monkeypatch):
    monkeypatch.setattr(records, "MAX_BYTES", 3 * 50 * size(step(32)))
    kept, rows = Records(None, None, None), [row(str(i), trace=i != 1) for i in range(6)]
    rows[1].fault = RowFault("a", "failed")
    for one in rows:
        grow(kept, one, 50, 32 if one.params.trace else 0)
        assert kept.total <= records.MAX_BYTES
        assert kept.total == sum(kept.bytes.values())
    assert list(kept) == [str(i) for i in range(6)]
    assert [one.untraced for one in rows] == [True, False, True, True, False, False]
    assert all(len(one.steps) == 50 for one in rows)  # what they did is still known
    assert kept.of("1")[0].fault
    for key in list(kept):
        kept.pop(key)
    assert kept.total == 0


def test_a_resumed_row_knows_that_its_trace_went(monkeypatch):
    monkeypatch.setattr(records, "MAX_BYTES", 20 * size(step(32)))
    kept, one = Records(None, None, None), row("a", trace=True)
    grow(kept, one, 30, 32)
    resumed = row("a", trace=True)
    resumed.prefix = one.prefix
    kept.keep(resumed)
    assert resumed.untraced
    assert resumed.steps.keys() == one.steps.keys()


def test_records_that_alone_are_too_many_are_forgotten(monkeypatch):
    monkeypatch.setattr(records, "MAX_BYTES", 100 * size(step()))
    kept, rows = Records(None, None, None), [row(str(i)) for i in range(9)]
    for one in rows:
        grow(kept, one, 20)
    assert kept.total <= records.MAX_BYTES
    assert list(kept) == ["5", "6", "7", "8"]
    assert rows[0].record_key is None  # and the next step does not begin it anew
    kept.keep(rows[0])
    assert "0" not in list(kept)


def test_without_the_bound_they_grow():
    """The control."""
    kept = Records(None, None, None)
    for i in range(9):
        grow(kept, row(str(i), trace=True), 20, 32)
    assert kept.total > 9 * 20 * 32 * 4 * sys.getsizeof(1.0)
    assert not any(one.untraced for key in kept for one in kept.of(key))
