"""Rollouts in two actors of a local Ray cluster, one of them killed; needs the extra `ray`."""

import json
import signal
import subprocess
import sys
import time

import psutil
import pytest
from conftest import environment

pytest.importorskip("ray")
pytestmark = [pytest.mark.engine, pytest.mark.slow]

COMMAND = "from trimtab_server.cli import main; main()"


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    root = tmp_path_factory.mktemp("ray")
    things = ("cafe", "hotel", "museum", "camera", "jacket", "lamp", "gym", "park")
    (root / "prompts.txt").write_text("".join(f"How was the {thing}?\n" for thing in things))

    def build(out, *more):
        options = ["--prompts", root / "prompts.txt", "--out", root / out, "--n", "160"]
        options += ["--seed", "4", "--max-tokens", "64"]
        options += ["--reward", "trimtab_models.demo.oracles:sentiment", *more]
        return [sys.executable, "-c", COMMAND, "rollout", "demo", *map(str, options)], root / out

    return build


def records(path):
    """Records by (prompt, sample), in order; a duplicate is an error."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    by_place = {(record["index"], record["sample"]): record for record in lines}
    assert len(by_place) == len(lines)
    return dict(sorted(by_place.items()))


def workers(driver):
    """The processes of the actors that sample."""
    actors = []
    for process in psutil.Process(driver.pid).children(recursive=True):
        try:
            if "ray::Worker" in " ".join(process.cmdline()):
                actors.append(process)
        except psutil.Error:  # it has just ended
            continue
    return actors


def test_a_killed_actor_changes_no_record(command, tmp_path):
    one_process, whole = command("whole.jsonl")
    subprocess.run(one_process, env=environment(), check=True, capture_output=True, timeout=300)

    in_actors, out = command("actors.jsonl", "--ray", "local", "--ray-actors", "2")
    with (tmp_path / "log").open("wb") as log:
        driver = subprocess.Popen(in_actors, env=environment(), stdout=log, stderr=log)
        deadline = time.monotonic() + 400
        while time.monotonic() < deadline and driver.poll() is None:
            if out.exists() and out.read_bytes().count(b"\n") > 100:
                break
            time.sleep(0.01)
        before = out.read_bytes().count(b"\n")
        killed, other = workers(driver)
        killed.send_signal(signal.SIGKILL)
        assert driver.wait(timeout=400) == 0, (tmp_path / "log").read_text()[-3000:]
    assert 100 < before < 1280, "the actor must be killed in the middle"
    assert other.pid != killed.pid

    mine, theirs = records(out), records(whole)
    assert list(mine) == list(theirs) == [(i, j) for i in range(8) for j in range(160)]
    # Other rows share a batch, and floats round otherwise: now and then a token is drawn on the
    # other side of its boundary. Everything else is equal.
    equal = [
        p for p in mine if mine[p]["completion_token_ids"] == theirs[p]["completion_token_ids"]
    ]
    assert len(equal) >= 0.95 * len(mine)
    for place in equal:
        logprobs = [record.pop("logprobs") for record in (mine[place], theirs[place])]
        assert logprobs[0] == pytest.approx(logprobs[1], abs=1e-4)
        assert mine[place] == theirs[place]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--ray-actors", "2"], "--ray-actors needs --ray"),
        (["--ray", "127.0.0.1:1"], "no Ray cluster answers"),
        (["--ray", "local", "--ray-actors", "100000"], "has room for"),
    ],
)
def test_what_cannot_start_is_one_line(command, more, message):
    arguments, out = command("refused.jsonl", *more)
    done = subprocess.run(
        arguments, env=environment(), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("trimtab:")]
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in done.stderr
    assert not out.exists()
