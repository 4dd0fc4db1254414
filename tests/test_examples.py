"""The examples run, word for word."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import KEY, environment

pytestmark = pytest.mark.slow  # each example is a process of its own

EXAMPLES = Path(__file__).parents[1] / "examples"
RUN = {"in_transformers", "client", "train_a_scorer", "own_family", "own_engine"}


def run(name, *args, cwd=None):
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py", *args],
        cwd=cwd or EXAMPLES,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_every_example_is_run():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == RUN


def test_in_transformers():
    out = run("in_transformers")
    good, bad = (float(number) for number in re.findall(r"^([+-]\d\.\d\d)  The room", out, re.M))
    assert good > 0 > bad


@pytest.mark.engine
def test_client(server):
    out = run("client", server.url, KEY)
    liked, disliked = (float(v) for v in re.findall(r"'sentiment': (-?[\d.]+)", out))
    assert liked > disliked


def test_train_a_scorer(tmp_path):
    out = run("train_a_scorer", tmp_path / "price")
    first, second = (float(number) for number in re.findall(r"(-?\d\.\d\d) after", out))
    assert first > second


def test_own_family():
    assert run("own_family") == "{'shouting': [1.0, 0.0]}\n"


def test_own_engine():
    shares = [int(number) for number in re.findall(r"(\d+)% of the tokens", run("own_engine"))]
    assert shares[2] < shares[0] < shares[1]
