"""Scorers that do not answer, or not in time: each call has a budget, and no exception escapes."""

import asyncio
import contextlib
import logging
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

from networks import LENGTH, configs
from trimtab.description import describe
from trimtab.guide import Guide
from trimtab.params import GuidanceParams
from trimtab.rows import Row
from trimtab.scorers import CompositeScorer, FunctionScorer, HeadScorer
from trimtab.scorers.base import Scorer
from trimtab.scoring import calls, deadline
from trimtab.scoring.backbone import Backbone
from trimtab.search.scoring import score_sequences
from trimtab_models.checkpoint import ScorerInfo
from trimtab_models.networks import scalar_head

pytestmark = pytest.mark.scorecard(letter="F")

SECONDS = 0.5
SOON = 40 * SECONDS
"""A generous bound on what one overrun takes, first answers and a busy machine included."""
LONG = 60.0
HOSTILE = 13
"""A prefix that begins with this token makes the scorers below misbehave."""


def plain(ids):
    return float(np.sin(sum((i + 1) * t for i, t in enumerate(ids))))


class Misbehaves(Scorer):
    """Does `what` for hostile prefixes, when it is called for scores or for anything in `also`."""

    family = "function"

    def __init__(self, what, also=()):
        super().__init__(ScorerInfo())
        self.what, self.also, self.count = what, also, 0

    def score(self, keys, prefixes, candidates, strengths, prompts=()):
        self.count += 1
        values = torch.cat([torch.from_numpy(group % 3).float() for group in candidates])
        if any(prefix[0] == HOSTILE for prefix in prefixes):
            made = self.what()
            return values if made is None else made(values)
        return values

    def forget(self, key):
        if "forget" in self.also:
            self.what()

    def shortened(self, key):
        if "shortened" in self.also:
            self.what()
        return 0

    @property
    def tokens_forwarded(self):
        if "tokens_forwarded" in self.also:
            self.what()
        return 0


def raising(error):
    def what():
        raise error

    return what


def looping():
    while True:
        pass


def stubborn():
    while True:
        with contextlib.suppress(Exception):  # a loop that survives what it can
            time.sleep(0.01)


def recursing():
    return recursing()


class Odd(BaseException):
    pass


RAISED = [
    RuntimeError("planted: 4 5 6"),
    SystemExit(3),
    KeyboardInterrupt(),
    GeneratorExit(),
    asyncio.CancelledError(),
    StopIteration(),
    Odd(),
    MemoryError(),
    torch.OutOfMemoryError("planted"),
]
WRONG = {
    "shape": lambda values: values[None],
    "too few": lambda values: values[:-1],
    "no tensor": lambda values: values.tolist(),
    "none": lambda values: "scores",
    "complex": lambda values: values * 1j,
    "sparse": lambda values: values.to_sparse(),
    "device": lambda values: values.to("meta"),
    "nan": lambda values: values * torch.nan,
    "+inf": lambda values: values + torch.inf,
    "all -inf": lambda values: values - torch.inf,
}
SLOW = {"sleeps": lambda: time.sleep(LONG), "loops": looping, "stubborn": stubborn}


def made(first, **fields):
    fields = {"scorers": {"plain": 1.0}, "beta": 2.0, "k": 5, "mass": 1.0} | fields
    row = Row(GuidanceParams.parse(fields), 2, stop_token=0)
    row.prefix = np.array([first, 2])
    return row


def logits(rows):
    return torch.randn(rows, 24, generator=torch.Generator().manual_seed(0)) * 2


def guide(bad, **more):
    return Guide({"plain": FunctionScorer(plain), "bad": bad, **more}, SECONDS)


def status(steered):
    return steered.registry.calls.status(steered.registry.scorers["bad"])


def wait_for_the_end(steered):
    limit = time.monotonic() + LONG
    while status(steered).busy and time.monotonic() < limit:
        time.sleep(0.01)
    assert not status(steered).busy, "the call that was left must not go on"


def check_a_step(bad, on_error):
    """A hostile row between two good ones: they get what they would get without it."""
    steered = guide(bad)
    warm = made(1, scorers={"bad": 1.0, "plain": 1.0})
    steered.step(logits(1), [(0, warm)])  # a first answer may take longer
    fields = {"scorers": {"bad": 1.0}, "on_error": on_error}
    rows = [made(1), made(HOSTILE, **fields), made(3)]
    base = logits(3)
    fused, alone = base.clone(), base.clone()
    began = time.monotonic()
    steered.step(fused, list(enumerate(rows)))
    assert time.monotonic() - began < SOON
    Guide({"plain": FunctionScorer(plain)}).step(alone, [(0, made(1)), (2, made(3))])
    assert torch.equal(fused[[0, 2]], alone[[0, 2]])
    assert not torch.equal(fused[0], base[0])
    assert [row.fault is not None for row in rows] == [False, True, False]
    assert rows[1].fault.scorer == "bad"
    if on_error == "unguided":
        assert torch.equal(fused[1], base[1])
    else:
        assert torch.isfinite(fused[1]).nonzero().tolist() == [[0]]
    return steered, rows[1]


@pytest.mark.parametrize("on_error", ["fail", "unguided"])
@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
def test_whatever_is_raised_stays_with_its_row(error, on_error, caplog):
    with caplog.at_level(logging.WARNING):
        steered, row = check_a_step(Misbehaves(raising(error)), on_error)
    assert row.fault.message == f"raised {type(error).__name__} while scoring"
    assert not row.fault.overrun
    assert status(steered).overruns == 0
    [line] = [r.getMessage() for r in caplog.records]
    assert line == f"scorer bad failed: raised {type(error).__name__} while scoring"
    assert caplog.records[0].exc_info is None  # a traceback contains its arguments


def test_the_traceback_is_logged_at_debug(caplog):
    with caplog.at_level(logging.DEBUG, logger="trimtab.guide"):
        check_a_step(Misbehaves(raising(RuntimeError("planted"))), "fail")
    logged = [r for r in caplog.records if r.levelno == logging.DEBUG and r.exc_info]
    assert "planted" in str(logged[0].exc_info[1])


def test_it_would_escape_from_where_the_engine_is(monkeypatch):
    """The control: without its thread, a scorer ends the process."""
    monkeypatch.setattr(Misbehaves, "keeps_time", True)
    with pytest.raises(SystemExit):
        check_a_step(Misbehaves(raising(SystemExit(3))), "fail")


@pytest.mark.parametrize("wrong", WRONG)
def test_answers_that_are_none(wrong):
    _, row = check_a_step(Misbehaves(lambda: WRONG[wrong]), "unguided")
    assert not row.fault.overrun
    if wrong == "too few":
        assert re.fullmatch(
            r"returned scores of shape \(\d+,\), expected \(\d+,\)", row.fault.message
        )
    if wrong == "no tensor":
        assert row.fault.message == "returned no plain tensor of real numbers"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64, torch.bool])
def test_other_real_numbers_are_as_good(dtype):
    steered = guide(Misbehaves(lambda: lambda values: values.to(dtype)))
    row = made(HOSTILE, scorers={"bad": 1.0})
    base = logits(1)
    fused = base.clone()
    steered.step(fused, [(0, row)])
    assert row.fault is None
    assert not torch.equal(fused, base)


def test_endless_recursion_is_an_error_like_any_other():
    _, row = check_a_step(Misbehaves(recursing), "fail")
    assert row.fault.message == "raised RecursionError while scoring"


@pytest.mark.parametrize("slow", SLOW)
@pytest.mark.parametrize("on_error", ["fail", "unguided"])
def test_who_takes_too_long_is_left(slow, on_error, caplog):
    bad = Misbehaves(SLOW[slow])
    with caplog.at_level(logging.WARNING):
        steered, row = check_a_step(bad, on_error)
    assert row.fault.overrun
    assert status(steered).overruns == 1
    assert [r.getMessage() for r in caplog.records] == [
        f"scorer bad took longer than it may ({SECONDS} s a call), overrun 1"
    ]
    if slow == "sleeps":  # not called while its last call may touch what it keeps
        count, again = bad.count, made(1, scorers={"bad": 1.0})
        steered.step(logits(1), [(0, again)])
        assert again.fault.message == "is still busy with a call that took too long"
        assert not again.fault.overrun
        assert bad.count == count
        assert status(steered).overruns == 1


def test_a_loop_is_ended_and_its_scorer_called_again_after_a_reset():
    bad, resets = Misbehaves(looping), []
    bad.reset = lambda: resets.append(1)
    steered, _ = check_a_step(bad, "unguided")
    wait_for_the_end(steered)
    row = made(1, scorers={"bad": 1.0})
    steered.step(logits(1), [(0, row)])
    assert row.fault is None
    assert resets == [1]
    assert status(steered).left is None


def test_an_overrun_is_not_repeated_row_by_row():
    bad = Misbehaves(lambda: time.sleep(LONG))
    steered = guide(bad)
    steered.step(logits(1), [(0, made(1, scorers={"bad": 1.0}))])
    rows = [made(t, scorers={"bad": 1.0}) for t in (1, HOSTILE, 3, HOSTILE, 5)]
    steered.step(logits(5), list(enumerate(rows)))
    assert bad.count == 2
    assert all(row.fault is not None for row in rows)
    assert status(steered).overruns == 1


def test_slow_failures_share_one_budget():
    """A scorer that takes its time to raise is called row by row only in the time that is left."""

    def what():
        time.sleep(SECONDS * 0.7)
        raise RuntimeError

    bad = Misbehaves(what)
    steered = guide(bad)
    steered.step(logits(1), [(0, made(1, scorers={"bad": 1.0}))])
    rows = [made(HOSTILE, scorers={"bad": 1.0}) for _ in range(24)]
    began = time.monotonic()
    steered.step(logits(24), list(enumerate(rows)))
    assert time.monotonic() - began < SOON
    assert bad.count < 5
    assert all(row.fault is not None for row in rows)


@pytest.mark.slow
def test_three_overruns_suspend(monkeypatch):
    bad = Misbehaves(looping)
    steered = guide(bad)
    steered.step(logits(1), [(0, made(1, scorers={"bad": 1.0}))])
    for n in range(1, 4):
        assert not status(steered).suspended
        steered.step(logits(1), [(0, made(HOSTILE, scorers={"bad": 1.0}))])
        assert status(steered).overruns == n
        wait_for_the_end(steered)
    count, row = bad.count, made(1, scorers={"bad": 1.0})
    steered.step(logits(1), [(0, row)])
    assert row.fault.message == "is suspended: it took too long several times"
    assert bad.count == count
    statuses = {one["name"]: one for one in describe(steered)}
    assert (statuses["bad"]["overruns"], statuses["bad"]["suspended"]) == (3, True)
    assert (statuses["plain"]["overruns"], statuses["plain"]["suspended"]) == (0, False)
    monkeypatch.setattr(calls, "STRIKE_SECONDS", 0.0)  # an hour later
    again = made(1, scorers={"bad": 1.0})
    steered.step(logits(1), [(0, again)])
    assert again.fault is None
    monkeypatch.undo()
    assert status(steered).suspended
    better = FunctionScorer(
        plain
    )  # another version, which a readiness check calls while this one is there
    row = made(HOSTILE, scorers={"bad": 1.0})
    row.scorers = {"bad": better}
    steered.step(logits(1), [(0, row)])
    assert row.fault is None


@pytest.mark.parametrize("what", [lambda: time.sleep(LONG), raising(SystemExit(1))])
@pytest.mark.parametrize("method", ["forget", "shortened", "tokens_forwarded"])
def test_other_calls_have_a_budget_too(what, method):
    armed = threading.Event()
    steered = guide(Misbehaves(lambda: what() if armed.is_set() else None, also=[method]))
    row = made(1, scorers={"bad": 1.0})
    row.record_key = "key"
    steered.step(logits(1), [(0, row)])
    armed.set()
    began = time.monotonic()
    steered.registry.forget([row.key])
    [report] = steered.records.report("key", [1, 2], [[3]], done=True, final=False)
    assert report["error"] is None
    assert {one["name"] for one in describe(steered)} == {"plain", "bad"}
    params = GuidanceParams(scorers={"bad": 1.0})
    score_sequences(steered, params, [[1, 2]], [7])
    steered.fail(row, "bad", "planted")
    assert time.monotonic() - began < 5 * SOON


@pytest.mark.slow
def test_final_scores_and_searches_have_a_budget():
    steered, row = check_a_step(Misbehaves(lambda: time.sleep(LONG)), "unguided")
    steered = guide(Misbehaves(lambda: time.sleep(LONG)))
    params = GuidanceParams(scorers={"bad": 1.0})
    answer = score_sequences(steered, params, [[HOSTILE, 2], [1, 2]], [7, 8])
    assert answer["error"]["overrun"]
    steered = guide(Misbehaves(lambda: time.sleep(LONG)))
    row = made(HOSTILE, scorers={"bad": 1.0}, k=1)  # single candidates are not scored before
    row.record_key = "key"
    steered.step(logits(1), [(0, row)])
    [report] = steered.records.report("key", [HOSTILE, 2], [[3]], done=True)
    assert report["error"] == {"scorer": "bad", "message": "took longer than it may"} | {
        "overrun": True
    }


@pytest.mark.slow
def test_a_first_answer_and_a_long_prefix_may_take_longer(monkeypatch):
    slow = FunctionScorer(lambda ids: time.sleep(SECONDS * 0.4) or 0.0)  # k = 5: twice the budget
    steered = Guide({"slow": slow}, SECONDS)
    first = made(1, scorers={"slow": 1.0})
    steered.step(logits(1), [(0, first)])
    assert first.fault is None, "it warms up"
    steered.step(logits(1), [(0, first)])
    assert first.fault.overrun, "it is warm: the control"
    monkeypatch.setattr(calls, "READ_TOKENS", 8)
    steered = Guide({"slow": slow}, SECONDS)
    steered.registry.calls.status(slow).answered = True
    long = made(1, scorers={"slow": 1.0})
    long.prefix = np.arange(32)
    steered.step(logits(1), [(0, long)])
    assert long.fault is None, "its prefix was new"
    steered.step(logits(1), [(0, long)])
    assert long.fault.overrun, "it has been read: the control"


@pytest.mark.slow
def test_without_a_budget_nobody_hurries():
    steered = Guide({"slow": FunctionScorer(lambda ids: time.sleep(SECONDS / 2) or 0.0)})
    rows = [made(1, scorers={"slow": 1.0})]
    for _ in range(2):
        steered.step(logits(1), list(enumerate(rows)))
    assert rows[0].fault is None


def network(seed=0):
    torch.manual_seed(seed)
    model = scalar_head(configs()["llama"])
    backbone = Backbone(model, max_length=LENGTH, pool_bytes=2**22, max_candidates=32)
    return HeadScorer(ScorerInfo(), backbone)


def test_networks_run_in_the_callers_thread_and_look_at_the_clock(monkeypatch):
    scorer, threads = network(), []
    steered = Guide({"net": scorer}, LONG)
    original = Backbone._run
    monkeypatch.setattr(
        Backbone,
        "_run",
        lambda *args: threads.append(threading.current_thread()) or original(*args),
    )
    rows = [made(t, scorers={"net": 1.0}) for t in (1, 2)]
    expected, fused = logits(2), logits(2)
    steered.step(expected, list(enumerate(rows)))
    assert set(threads) == {threading.current_thread()}
    assert steered.registry.calls._thread is None
    monkeypatch.setattr(calls, "FIRST", 0)
    hasty = Guide({"net": scorer}, 1e-9)
    rows = [made(t, scorers={"net": 1.0}, on_error="unguided") for t in (1, 2)]
    hasty.step(fused, list(enumerate(rows)))
    assert all(row.fault.overrun for row in rows)
    assert torch.equal(fused, logits(2))
    again = logits(2)
    rows = [made(t, scorers={"net": 1.0}) for t in (1, 2)]
    steered.step(again, list(enumerate(rows)))  # what was cut off is not reused
    torch.testing.assert_close(again, expected)


def test_a_network_that_does_not_look_at_the_clock_is_found_out(monkeypatch):
    """One forward that is too long cannot be ended, but it counts."""
    monkeypatch.setattr(Misbehaves, "keeps_time", True)
    steered, row = check_a_step(Misbehaves(lambda: time.sleep(SECONDS * 1.5)), "unguided")
    assert row.fault.overrun
    assert status(steered).overruns == 1


def test_a_network_within_a_left_composite_is_not_touched_by_two_threads():
    net, bad = network(), Misbehaves(lambda: time.sleep(LONG))
    mix = CompositeScorer({"net": (net, 1.0), "bad": (bad, 1.0)})
    steered = Guide({"net": net, "mix": mix}, SECONDS)
    steered.step(logits(1), [(0, made(1, scorers={"mix": 1.0}))])
    steered.step(logits(1), [(0, made(HOSTILE, scorers={"mix": 1.0}))])
    row = made(1, scorers={"net": 1.0})
    steered.step(logits(1), [(0, row)])
    assert row.fault.message == "is still busy with a call that took too long"


def test_the_thread_scores_as_this_one_does():
    """Bit for bit, and under the same modes of torch."""
    settings, net = [], network()

    class Elsewhere(HeadScorer):
        keeps_time = False

        def score(self, *args):
            settings.append((torch.is_inference_mode_enabled(), torch.is_grad_enabled()))
            settings.append(torch.get_num_threads())
            return super().score(*args)

    other = Elsewhere(ScorerInfo(), network().backbone)
    for inference in (True, False):
        with torch.inference_mode(inference):
            results = []
            for scorer in (net, other):
                fused = logits(3)
                rows = [made(t, scorers={"net": 1.0}) for t in (1, 2, 3)]
                Guide({"net": scorer}, LONG).step(fused, list(enumerate(rows)))
                results.append(fused.clone())
            assert torch.equal(*results)
            assert settings[-2] == (inference, not inference)
            assert settings[-1] == torch.get_num_threads()


def test_a_pool_is_whole_after_a_reset():
    net = network()
    expected = net.score([1], [np.array([1, 2])], [np.array([3, 4])], [1.0])
    pool = net.backbone.pool
    pool._refs -= 3  # as a call that was cut off may leave it
    pool._n_free = 2
    net.reset()
    assert pool.free_slots == pool.size - 1
    again = net.score([1], [np.array([1, 2])], [np.array([3, 4])], [1.0])
    torch.testing.assert_close(again, expected)


@pytest.mark.usefixtures("interruptible")
def test_signals_to_this_process_pass():
    """Ctrl-C during a call is not a fault of the scorer."""
    steered = Guide({"slow": FunctionScorer(lambda ids: time.sleep(LONG) or 0.0)})
    timer = threading.Timer(
        SECONDS, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)
    )
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        steered.step(logits(1), [(0, made(1, scorers={"slow": 1.0}))])
    assert steered.registry.faults["slow"] == 0


@pytest.mark.slow
def test_a_thread_that_was_left_does_not_keep_the_process():
    code = (
        "import time, numpy, torch\n"
        "from trimtab.guide import Guide\n"
        "from trimtab.params import GuidanceParams\n"
        "from trimtab.rows import Row\n"
        "from trimtab.scorers import FunctionScorer\n"
        "guide = Guide({'s': FunctionScorer(lambda ids: time.sleep(600))}, 0.1)\n"
        "row = Row(GuidanceParams(scorers={'s': 1.0}), 1, prefix=numpy.array([1]))\n"
        "guide.step(torch.randn(1, 9), [(0, row)])\n"
        "assert row.fault.overrun\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], timeout=120, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_threads_do_not_outlive_their_guides():
    before = threading.active_count()
    for _ in range(20):
        Guide({"plain": FunctionScorer(plain)}).step(logits(1), [(0, made(1))])
    limit = time.monotonic() + LONG
    while threading.active_count() > before + 5 and time.monotonic() < limit:
        time.sleep(0.01)
    assert threading.active_count() <= before + 5


def test_deadlines_are_of_one_thread():
    with deadline.by(0.0):
        with pytest.raises(deadline.OutOfTime):
            deadline.check()
        thread = threading.Thread(target=deadline.check)
        thread.start()
        thread.join()
    deadline.check()
