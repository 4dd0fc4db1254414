"""docs/presets.md runs: its commands, its Python and its files, over the fake upstream."""

import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import threading
import time
from pathlib import Path

import pytest
import uvicorn
import yaml
from typer.testing import CliRunner
from upstream_fake import Fake

from trimtab_server import cli, launcher, settings
from trimtab_server.presets.preset import Preset
from trimtab_server.presets.store import Presets
from trimtab_server.upstream import build

DOC = (Path(__file__).parents[2] / "docs" / "presets.md").read_text()
ADMIN = "an-admin-key"
SCORERS = [
    f"{name}=upstream_fake:likes_good,family=function,reads=text"
    for name in ("sentiment", "formality", "brevity")
]


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", DOC, re.M | re.S)


def test_every_block_is_run_or_checked():
    assert {*re.findall(r"^```(\w+)$", DOC, re.M)} == {"sh", "bash", "python", "yaml", "json"}


@pytest.fixture
def commands(monkeypatch, tmp_path):
    """The settings of each `trimtab serve` of the page."""
    served = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launcher, "serve", lambda chosen, flags: served.append((chosen, flags)))
    for block in blocks("sh"):
        variables, _, arguments = block.partition("trimtab ")
        env = {"TRIMTAB_ADMIN_KEY": ADMIN} if variables else {}
        assert CliRunner().invoke(cli.app, shlex.split(arguments), env=env).exit_code == 0
    return served


def test_the_commands_that_serve_are_valid(commands):
    short, long, by_file = [chosen for chosen, flags in commands if not flags]
    for chosen in (short, long, by_file):
        Presets.load(chosen).check(("sentiment", "formality", "brevity"), None)
    assert set(short.preset) == {"warm", "formal"}
    assert long.preset["warm"].bounds == {"beta": [0.0, 8.0]}
    assert short.preset["warm"].guidance == long.preset["warm"].guidance
    assert by_file.presets == Path("presets.yaml")


def test_the_files_are_presets(tmp_path):
    file = tmp_path / "presets.yaml"
    [text] = blocks("yaml")
    file.write_text(text)
    options = {"upstream": "http://u/v1", "upstream_model": "m", "scorer": SCORERS}
    loaded = Presets.load(settings.load({**options, "presets": file}))
    assert set(loaded.saved) == set(yaml.safe_load(text))
    [bound] = blocks("json")
    assert Preset.parse(json.loads(bound)).key_sha256


@pytest.fixture
def url(commands, tmp_path):
    """A server in this process with the presets of the page's first command."""
    app = build(
        settings.load(
            {
                "upstream": "http://upstream/v1",
                "upstream_model": "demo",
                "upstream_api": "chat",
                "upstream_continue": "prefix",
                "upstream_end": ["<end>"],
                "scorer": SCORERS,
                "admin_key": ADMIN,
                "preset": commands[0][0].preset,
                "presets": tmp_path / "presets.yaml",
            }
        ),
        Fake().transport(),
    )
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


def test_the_blocks_run(url):
    answers = []
    for block in blocks("bash"):
        script = block.replace("http://localhost:8000", url)
        script = script.replace("curl -s", "curl -sS --fail-with-body")
        done = subprocess.run(
            ["bash", "-c", f"set -euo pipefail\n{script}"],
            env={**os.environ, "ADMIN": ADMIN},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        text = done.stdout
        while text:
            answer, end = json.JSONDecoder().raw_decode(text)
            answers.append(answer)
            text = text[end:].lstrip()
    models, one, steered, weaker, put, presets, shown, deleted, fitted = answers
    assert {"demo", "demo@warm"} <= {model["id"] for model in models["data"]}
    assert one["id"] == steered["model"] == weaker["model"] == "demo@warm"
    assert steered["choices"][0]["guidance"]["scores"].keys() == {"sentiment"}
    assert weaker["choices"][0]["guidance"]["steps"] > 0
    assert put == shown
    assert put in presets["data"]
    assert deleted["deleted"]
    assert fitted["preset"]["guidance"] == fitted["guidance"]
    assert fitted["weights"].keys() == {"sentiment", "brevity"}
    assert fitted["ties"] == 1
    [code] = blocks("python")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code.replace("http://localhost:8000", url), {})
    assert "demo@warm" in printed.getvalue().splitlines()[1]
