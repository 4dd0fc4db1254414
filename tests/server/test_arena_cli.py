"""`trimtab arena` and `trimtab sweep`: errors, and a sweep from end to end."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import environment
from typer.testing import CliRunner

from trimtab_lab.arena.task import Config
from trimtab_models import demo
from trimtab_server.cli import app

ROOT = Path(__file__).parents[2]
SENTIMENT = f"sentiment={demo.scorers()['sentiment']}"
REWARD = "trimtab_models.demo.oracles:sentiment"


@pytest.fixture
def here(monkeypatch):
    """Run the command in this process: its imports take seconds in a process of its own."""
    pytest.importorskip("vllm")
    monkeypatch.setattr("trimtab.logs.configure_logging", lambda: None)
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")

    def run(*arguments):
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run


def refused(here, *args):
    done = here(*args)
    assert isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1].startswith("trimtab: ")  # after a bar, if one began
    assert "Traceback" not in done.stderr
    return done.stderr


def test_unknown_worlds_and_methods_are_refused(here, tmp_path):
    assert "reviews, digest" in refused(here, "arena", "nowhere")
    message = refused(here, "arena", "reviews", "--only", "vaas", "--out", tmp_path / "out")
    assert "no such method: vaas" in message
    assert not (tmp_path / "out").exists(), "it is refused before anything is made"


def test_a_sweep_needs_what_it_needs(here, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Review a hotel.\n")
    command = ["sweep", "demo", "--scorer", SENTIMENT, "--prompts", prompts]
    out = ["--out", tmp_path / "out"]
    assert "at least 8 are needed" in refused(here, *command, "--reward", REWARD, *out)
    assert "module:function" in refused(here, *command, "--reward", "nonsense", *out)
    command[-1] = tmp_path / "absent.txt"
    assert "absent.txt" in refused(here, *command, "--reward", REWARD, *out)


def test_the_example_configuration_is_one():
    text = (ROOT / "configs" / "arena" / "own.yaml").read_text()
    assert Config.model_validate(yaml.safe_load(text)).gold == "sentiment"


@pytest.mark.engine
def test_a_sweep_recommends_and_goes_on_without_an_engine(here, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(demo.prompts("test", 12, seed=3)) + "\n")
    command = ["sweep", "demo", "--scorer", SENTIMENT, "--prompts", prompts, "--reward", REWARD]
    command += ["--kl", 3, "--n", 1, "--max-tokens", 24, "--out", tmp_path / "out"]
    done = subprocess.run(
        [sys.executable, "-m", "trimtab_server.cli", *map(str, command)],
        capture_output=True,
        text=True,
        timeout=600,
        env=environment(HF_HUB_OFFLINE="1"),
        check=False,
        cwd=ROOT,
    )
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
    again = here(*command)
    assert again.stdout == done.stdout
    assert {path: path.stat().st_mtime_ns for path in files} == files
    other = refused(here, *command[:-2], "--seed", "1", *command[-2:])
    assert "made with other settings" in other
