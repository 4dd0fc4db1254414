"""Every vLLM runner gives what the plain reference gives, whatever happens to its rows."""

import os
from pathlib import Path

import pytest
from conftest import json_lines

pytest.importorskip("vllm")
pytestmark = pytest.mark.engine


def run(runner, directory):
    script = Path(__file__).with_name("conformance.py")
    lines = json_lines(script, runner, directory, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return lines[0], {line["check"]: line for line in lines[1:]}


def check(checks, expected):
    assert set(checks) == expected
    for check in checks.values():
        assert check["compared"] > 0, check
        assert check["mismatches"] == 0, check


def test_speculation(tmp_path):
    engine, checks = run("v2-drafts", tmp_path)
    assert engine["v2"]
    expected = {"mixed settings in one batch", "preemption", "preemptions happened", "n > 1"}
    expected |= {"draft tokens were accepted", "draft tokens were rejected"}
    expected |= {"sampled tokens follow guidance", "the control: not the base"}
    check(checks, expected)


@pytest.mark.parametrize("runner", ["v1", "v1-async", "v2"])
def test_conformance(runner, tmp_path):
    engine, checks = run(runner, tmp_path)
    assert engine["v2"] == (runner == "v2")
    assert engine["asynchronous"] == (runner == "v1-async") or runner == "v2"
    stale = checks.pop("the control", None)
    assert (stale is not None) == (runner == "v1")
    assert stale is None or stale["mismatches"] > 0, "rows that are not moved must be found"
    expected = {
        "mixed settings in one batch",
        "chunked prefill",
        "preemption",
        "preemptions happened",
        "n > 1",
        "rows moved, replaced and aborted",
        "after all that",
    }
    check(checks, expected)
