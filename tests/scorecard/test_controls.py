"""The scorecard's own checks can fail: each is shown something wrong, and must see it."""

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import environment

from scorecard.client import Answer
from scorecard.soak import Question, Soak
from scorecard.test_soak import BYTES_A_REQUEST, growth

pytestmark = pytest.mark.scorecard(letter="R")

FIELDS = {"prompt": "x", "scorers": {"sentiment": 1.0}, "beta": 1.0, "stream": False}
RECORD = {"error": None}


@pytest.fixture
def soak():
    soak = Soak.__new__(Soak)
    soak.checkpoints = {}
    return soak


def judged(soak, answer, **fields):
    question = Question(FIELDS, {"sentiment": [1, 2, 3]})
    return list(soak.judge(question, FIELDS | fields, answer))


def choice(ids, finish="stop", record=RECORD):
    return {"index": 0, "token_ids": ids, "finish_reason": finish, "guidance": record}


def body(*choices):
    return Answer(200, json.dumps({"choices": choices}).encode())


def test_another_token_is_a_mismatch(soak):
    assert judged(soak, body(choice([1, 2, 3]))) == ["compared"]
    assert judged(soak, body(choice([1, 2, 4]))) == ["compared", "mismatch"]
    assert judged(soak, body(choice([1, 2, 3], record={"error": {}}))) == ["compared", "mismatch"]


def test_statuses_are_distinguished(soak):
    assert judged(soak, Answer(500)) == ["5xx"]
    assert judged(soak, Answer(400)) == ["malformed"]
    assert judged(soak, Answer(404)) == ["malformed"]  # this question names no scorer that moves
    assert judged(soak, Answer(0)) == ["cut"]
    assert judged(soak, Answer(0, left="on admission")) == ["on admission"]


@pytest.mark.parametrize("end", [[], ["[DONE]"], [{"choices": [choice([3])]}]])
def test_a_stream_without_its_end_is_cut(soak, end):
    """A stream must have a finish or an error, and then [DONE]."""
    first = {"choices": [choice([1, 2], None, None)]}
    whole = [first, {"choices": [choice([3])]}, {"choices": []}, "[DONE]"]
    assert judged(soak, Answer(200, events=whole), stream=True) == ["compared"]
    assert judged(soak, Answer(200, events=[first, *end]), stream=True) == ["cut"]
    assert Answer(200, events=[first, {"error": {}}, "[DONE]"]).whole


@pytest.mark.parametrize(("leak", "flat"), [(0, True), (2 * BYTES_A_REQUEST, False)])
def test_a_leak_is_seen(leak, flat):
    requests = np.arange(0, 10_000, 20)
    noise = np.random.default_rng(0).normal(0, 200_000, len(requests))
    points = [(int(n), int(3e8 + leak * n + e)) for n, e in zip(requests, noise, strict=True)]
    assert (growth(points)[1] <= BYTES_A_REQUEST) == flat


def test_a_process_that_does_not_change_is_flat():
    assert growth([(n, 10**8) for n in range(100)]) == (0, 0)


@pytest.mark.slow
def test_items_are_counted(tmp_path):
    """A letter's line has what passed, of what ran; a test that skips itself is no item."""
    (tmp_path / "test_x.py").write_text(
        "import pytest\n"
        "pytestmark = pytest.mark.scorecard(letter='B')\n"
        "@pytest.mark.parametrize('n', range(5))\n"
        "def test_item(n):\n"
        "    assert n != 3\n"
        "def test_skipped():\n"
        "    pytest.skip('no')\n"
    )
    command = [sys.executable, "-m", "pytest", "-p", "scorecard.report", "-c", "/dev/null"]
    env = environment(PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")  # other plug-ins take seconds to import
    for more in ([], ["-p", "xdist", "-n", "1"]):
        done = subprocess.run(
            [*command, *more, "."],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1, done.stdout + done.stderr
        assert "scorecard B: 4 of 5 items passed" in done.stdout
