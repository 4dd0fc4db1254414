"""Rollouts and searches on a real offline engine, and searches on the served one beside it."""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import json_lines

from trimtab_models import demo

pytest.importorskip("vllm")
pytestmark = pytest.mark.engine
HERE = Path(__file__).parent
COMMAND = """
import typer
from trimtab_server.commands.rollout import rollout
app = typer.Typer(pretty_exceptions_enable=False)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(rollout)
app()
"""


def environment():
    path = os.pathsep.join(p for p in (str(HERE.parent), os.environ.get("PYTHONPATH")) if p)
    # Everything here is on this machine, so all of it works without the hub.
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("rollouts")
    (root / "prompts.txt").write_text("\n".join(demo.prompts("train", 30, seed=1)) + "\n")
    return root


@pytest.fixture(scope="module")
def lines(root):
    return json_lines(HERE / "rollout_engine.py", root, env=environment())


@pytest.fixture(scope="module")
def checks(lines):
    return {line["check"]: line for line in lines}


def test_log_probabilities_are_the_bases(checks):
    """At temperature 0.7, and under guidance and top-p too: log π0 at temperature 1."""
    assert checks["log-probabilities"]["difference"] < 1e-4
    assert checks["guided log-probabilities"]["difference"] < 1e-4
    assert checks["guidance"]["kl"][0] == 0.0
    assert checks["guidance"]["kl"][1] > 0.5, "guidance must have done something"
    assert checks["guidance"]["guided"] > checks["guidance"]["plain"] + 0.2


def test_offline_the_hub_would_not_answer(checks):
    """The control of `HF_HUB_OFFLINE`: what vLLM takes for a model without one is not here."""
    assert checks["default model"]["loaded"] is False


def test_completions_end_as_they_should(checks):
    assert checks["ends"] == {"check": "ends", "whole": True, "lengths": True, "once": True}


def test_seeds_decide(checks):
    """Rounding depends on who shares the batch, and may turn a rare token: hence 0.95."""
    assert checks["seeds"]["again"] >= 0.95
    assert checks["seeds"]["alone"] >= 5 / 6
    assert checks["seeds"]["other"] < 0.2
    assert checks["seeds"]["distinct"] >= 5


def test_faults_are_reported_and_survived(checks):
    assert "faulty" in checks["fault"]["message"]
    assert "maximum of 512" in checks["too long"]["message"]
    assert checks["after faults"]["again"] >= 0.95


def test_half_completed_answers_are_about_the_returns(checks, root):
    """The base completes its own answers, so the source rewards lie around the means."""
    records = [json.loads(line) for line in (root / "completed.jsonl").read_text().splitlines()]
    assert sorted(record["index"] for record in records) == list(range(40))
    errors = [record["reward"] - record["mean"] for record in records]
    standard_error = statistics.stdev(errors) / len(errors) ** 0.5
    assert abs(statistics.fmean(errors)) < 4 * standard_error
    assert standard_error > 0


def test_killed_and_taken_up_again(checks, root):
    out = root / "killed.jsonl"
    command = [sys.executable, "-c", COMMAND, "demo"]
    command += ["--prompts", root / "prompts.txt", "--out", out, "--n", "20", "--seed", "4"]
    command += ["--max-tokens", "64", "--reward", "trimtab_models.demo.oracles:sentiment"]
    with (root / "log").open("wb") as log:
        first = subprocess.Popen(command, env=environment(), stdout=log, stderr=log)
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and first.poll() is None:
            if out.exists() and out.read_bytes().count(b"\n") > 100:
                break
            time.sleep(0.005)
        first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL, (root / "log").read_text()[-3000:]
    before = out.read_bytes()
    assert 100 < before.count(b"\n") < 600, "it must be killed in the middle"
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert out.read_bytes().startswith(before[: before.rfind(b"\n") + 1])

    resumed, whole = places(out), places(root / "whole.jsonl")
    assert list(resumed) == list(whole) == [(i, j) for i in range(30) for j in range(20)]
    # Other rows share the batch after a kill, and floats round otherwise: now and then a token is
    # drawn on the other side of its boundary. Everything else is equal.
    equal = [
        p for p in whole if resumed[p]["completion_token_ids"] == whole[p]["completion_token_ids"]
    ]
    assert len(equal) >= 0.95 * len(whole)
    for place in equal:
        logprobs = [record.pop("logprobs") for record in (resumed[place], whole[place])]
        assert logprobs[0] == pytest.approx(logprobs[1], abs=1e-4)
        assert resumed[place] == whole[place]


def places(path):
    """Records by (prompt, sample), in order; a duplicate is an error."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    by_place = {(record["index"], record["sample"]): record for record in records}
    assert len(by_place) == len(records)
    return dict(sorted(by_place.items()))


def test_best_of_n_is_the_best_of_n_draws(checks):
    check = checks["best of n"]
    assert check["equal"] == 4
    assert check["values"] < 1e-4
    assert check["drawn"]


def test_mcts_without_simulations_is_greedy_guidance(checks):
    check = checks["greedy"]
    assert check["equal"] == 4
    assert check["moved"] > 0, "guidance must have done something"


def test_every_scorer_token_is_counted(lines):
    """What plain draws are scored with: exactly what went through the scorers' networks."""
    methods = [line for line in lines if line["check"] == "method"]
    assert len(methods) == 5
    for line in methods:
        assert line["counted"] == line["spent"] > 0


def test_every_method_finds_better_answers_than_drawing(lines, checks):
    drawing = checks["drawing"]["value"]
    for line in lines:
        if line["check"] == "method":
            assert line["value"] > drawing + 0.3, line


def test_prefixes_are_read_once(checks):
    check = checks["prefix"]
    assert 0 < check["read"] < check["whole"] / 2


def test_scorers_keep_nothing_of_what_is_over(checks):
    assert checks["entries"]["left"] == 0


def test_what_a_search_refuses(checks):
    messages = checks["refusals"]
    assert "no scorers" in messages["scorers"]
    assert "maximum of 512" in messages["long"]
    assert "two tokens" in messages["short"]
    assert "no scorer of that name" in messages["unknown"]
    assert "'faulty' failed" in messages["fault"]
    assert "methods are" in messages["method"]


def test_the_server_finds_the_same(lines, server):
    """The same seed through the other driver, whose engine batches and caches otherwise."""
    for line in lines:
        if line["check"] == "alone":
            answer = server.generate(
                prompt_token_ids=line["prompt"],
                scorers={"sentiment": 1.0, "brevity": 0.3},
                beta=4.0,
                seed=1,
                max_tokens=40,
                search=line["search"],
            )
            [choice] = answer["choices"]
            assert choice["token_ids"] == line["answer"], line["method"]
            for name, value in line["facts"].items():
                assert choice["search"][name] == pytest.approx(value, abs=1e-3), name
            drawn = answer["usage"]["search"]["drawn_tokens"]
            assert drawn == line["usage"]["drawn_tokens"]
