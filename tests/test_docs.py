"""The documents are true: the README's blocks run, the architecture names every folder."""

import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import environment, free_port

from trimtab.params import FIELDS, GuidanceParams
from trimtab_models.objectives import OBJECTIVES
from trimtab_models.training.config import TrainConfig
from trimtab_models.training.grounded.settings import GroundedConfig
from trimtab_models.training.trainer import HEAD_FAMILIES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
TRAINING = (ROOT / "docs" / "training.md").read_text()
PACKAGES = (
    "server/trimtab_server",
    "lab/trimtab_lab",
    "guidance/trimtab",
    "models/trimtab_models",
)


def blocks(language, text=README):
    fenced = re.findall(r"^```(\w+)\n(.*?)^```", text, re.M | re.S)
    return [code for kind, code in fenced if kind == language]


def test_every_block_is_run_or_checked():
    assert set(re.findall(r"^```(\w+)$", README, re.M)) == {"sh", "bash", "python"}
    assert len(blocks("bash")) == 2
    assert len(blocks("python")) == 2


@pytest.mark.engine
def test_shell_blocks_run(server, tmp_path):
    """Each curl and trimtab command, word for word but for address and key."""
    key = server.http.headers["Authorization"].removeprefix("Bearer ")
    changes = {
        "http://localhost:8000": server.url,
        "curl -s": f"curl -sS --fail-with-body -H 'Authorization: Bearer {key}'",
        "trimtab generate": f"{shlex.quote(sys.executable)} -m trimtab_server.cli generate "
        f"--url {server.url} --api-key {key}",
    }

    def output_of(block):
        script = f"set -euo pipefail\n{block}"
        for old, new in changes.items():
            script = script.replace(old, new)
        done = subprocess.run(
            ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    answers, search_answer = map(output_of, blocks("bash"))
    praise, end = json.JSONDecoder().raw_decode(answers)
    blame, length = json.JSONDecoder().raw_decode(answers[end:].lstrip())
    typed = answers[end:].lstrip()[length:]
    scores = [answer["choices"][0]["guidance"]["scores"]["sentiment"] for answer in (praise, blame)]
    assert scores[0] > scores[1]
    assert "{" not in typed
    assert len(typed.split()) > 4
    result = json.loads(search_answer)
    assert result["choices"][0]["search"]["method"] == "best_of_n"
    assert result["usage"]["search"]["drawn_tokens"] > result["usage"]["completion_tokens"]


@pytest.mark.engine
def test_python_blocks_run(server, tmp_path):
    key = server.http.headers["Authorization"].removeprefix("Bearer ")
    for code in blocks("python"):
        here = code.replace("http://localhost:8000", server.url).replace('"none"', repr(key))
        done = subprocess.run(
            [sys.executable, "-c", here], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.split()) > 4


@pytest.mark.engine
def test_the_tutorial_runs(tmp_path):
    """Word for word but for the port: from prompts and a reward to a server that steers."""
    [script] = blocks("bash", (ROOT / "docs" / "tutorial.md").read_text())
    assert len([line for line in script.splitlines() if not line.startswith("    ")]) <= 11
    script = script.replace("8010", str(free_port()))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", f"set -euo pipefail\n{script.replace('wait', 'wait || true')}"],
        cwd=tmp_path,
        env=environment(PATH=path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    towards, away = (part.count("The price") for part in done.stdout.split("--- and away from it"))
    assert towards >= 6, done.stdout
    assert away <= 2, done.stdout
    assert (tmp_path / "price" / "report.md").exists()


def rows(text, heading):
    """Cells of the tables under a heading."""
    section = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    cells = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in row] for row in cells]


def test_every_objective_is_documented_with_its_options():
    documented = {}
    for names, data, family, _, options in rows(TRAINING, "Objectives"):
        for name in re.findall(r"`([\w-]+)`", names):
            documented[name] = data, family.strip("`"), set(re.findall(r"`(\w+)`", options))
    assert set(documented) == {*OBJECTIVES, "dpo"}
    for name, make in OBJECTIVES.items():
        objective, keywords = make(), getattr(make, "keywords", {})
        data = {"ranked": "rankings"}.get(objective.data, objective.data)
        options = set(inspect.signature(make).parameters) - set(keywords)
        assert documented[name] == (data, HEAD_FAMILIES[objective.head], options), name


@pytest.mark.parametrize(
    ("heading", "model"),
    [("Settings", TrainConfig), ("Training the language model itself", GroundedConfig)],
)
def test_every_setting_of_training_is_documented(heading, model):
    documented_defaults = {}
    for names, _, default in rows(TRAINING, heading):
        documented_defaults |= dict.fromkeys(re.findall(r"`(\w+)`", names), default)
    fields = dict(model.model_fields)
    if model is GroundedConfig:
        del fields["objective"]
    assert set(documented_defaults) == set(fields)
    for name, field in fields.items():
        if type(field.default) in (int, float, bool):
            assert yaml.safe_load(documented_defaults[name]) == field.default, name


def test_the_table_of_fields_is_complete():
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| ([^|]*) \|$", README, re.M))
    assert set(FIELDS) <= set(rows)
    for name, field in GuidanceParams.model_fields.items():
        if name != "scorers":
            assert rows[name].strip("`").lower() == str(field.default).lower().removesuffix(".0")


ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()


def test_architecture_names_every_folder():
    folders = {
        f"{path.parent.relative_to(ROOT)}/"
        for package in PACKAGES
        for path in (ROOT / package).rglob("__init__.py")
    }
    assert set(re.findall(r"^- `(\S+/)`: ", ARCHITECTURE, re.M)) == folders


def test_architecture_names_modules_that_exist():
    folders = (*PACKAGES, "tests")
    modules = {path for folder in folders for path in (ROOT / folder).rglob("*.py")}
    ends = {"/".join(path.parts[-n:]) for path in modules for n in (1, 2, 3, 4)}
    named = set(re.findall(r"`((?:\w+/)*\w+\.py)`", ARCHITECTURE))
    assert len(named) > 10
    assert named <= ends, named - ends


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))])
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:|mailto:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_images_copy_what_exists():
    for image in ("cpu", "gpu"):
        dockerfile = (ROOT / "docker" / f"Dockerfile.{image}").read_text()
        assert "\nUSER trimtab\n" in dockerfile
        for source in re.findall(r"^COPY (?:--\S+ )?(.*) \S+$", dockerfile, re.M):
            assert all((ROOT / name).exists() for name in source.split())


def test_the_index_of_results_names_every_file():
    folder = ROOT / "benchmarks" / "results"
    index = (folder / "README.md").read_text()
    links = set(re.findall(r"\]\(([\w.-]+)\)", index))
    assert {path.stem for path in folder.iterdir()} <= {Path(link).stem for link in links} | {
        "README"
    }
    tables = {link for link in links if link.endswith(".md")}
    assert all((folder / table).exists() for table in tables)
    scripts = set(re.findall(r"`(\w+\.py)`", index))
    assert all((ROOT / "benchmarks" / script).exists() for script in scripts)
