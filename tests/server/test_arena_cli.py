"""`trimtab arena` and `trimtab sweep`: errors, and a sweep from end to end."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import environment

from trimtab_lab.arena.task import Config
from trimtab_models import demo

ROOT = Path(__file__).parents[2]
SENTIMENT = f"sentiment={demo.scorers()['sentiment']}"
REWARD = "trimtab_models.demo.oracles:sentiment"


def trimtab(*args, timeout=120):
    return subprocess.run(
        [sys.executable, "-m", "trimtab_server.cli", *map(str, args)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment(HF_HUB_OFFLINE="1"),
        check=False,
        cwd=ROOT,
    )


def refused(*args):
    done = trimtab(*args)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("trimtab: ")  # after a bar, if one began
    assert "Traceback" not in done.stderr
    return done.stderr


def test_unknown_worlds_and_methods_are_refused(tmp_path):
    assert "reviews, digest" in refused("arena", "nowhere")
    message = refused("arena", "reviews", "--only", "vaas", "--out", tmp_path / "out")
    assert "no such method: vaas" in message
    assert not (tmp_path / "out").exists(), "it is refused before anything is made"


def test_a_sweep_needs_what_it_needs(tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Review a hotel.\n")
    command = ["sweep", "demo", "--scorer", SENTIMENT, "--prompts", prompts]
    out = ["--out", tmp_path / "out"]
    assert "at least 8 are needed" in refused(*command, "--reward", REWARD, *out)
    assert "module:function" in refused(*command, "--reward", "nonsense", *out)
    command[-1] = tmp_path / "absent.txt"
    assert "absent.txt" in refused(*command, "--reward", REWARD, *out)


def test_the_example_configuration_is_one():
    text = (ROOT / "configs" / "arena" / "own.yaml").read_text()
    assert Config.model_validate(yaml.safe_load(text)).gold == "sentiment"


@pytest.mark.engine
def test_a_sweep_recommends_and_goes_on_without_an_engine(tmp_path):
    pytest.importorskip("vllm")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(demo.prompts("test", 12, seed=3)) + "\n")
    command = ["sweep", "demo", "--scorer", SENTIMENT, "--prompts", prompts, "--reward", REWARD]
    command += ["--kl", 3, "--n", 1, "--max-tokens", 24, "--out", tmp_path / "out"]
    done = trimtab(*command, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("Recommended: β = ")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    advice = results["advice"]
    assert advice["reward"]["mean"] > advice["base"]["mean"] + 0.3
    assert advice["reward"]["n"] == 6, "half of the prompts choose, half judge"
    assert 0 < advice["kl"] < 4
    chosen = [r for r in results["runs"] if r["method"] == advice["candidates"]]
    assert any(r["settings"]["guidance"]["beta"] == advice["beta"] for r in chosen)
    assert (tmp_path / "out" / "heat-map.png").exists()

    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "runs").iterdir()}
    again = trimtab(*command)
    assert again.stdout == done.stdout
    assert {path: path.stat().st_mtime_ns for path in files} == files
    other = refused(*command[:-2], "--seed", "1", *command[-2:])
    assert "made with other settings" in other
