"""The documents are true: the README's blocks run, the architecture names every module."""

import ast
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from trimtab.params import FIELDS, GuidanceParams

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.M | re.S)
PACKAGES = ("server/trimtab_server", "guidance/trimtab", "models/trimtab_models")


def blocks(language):
    return [code for kind, code in BLOCKS if kind == language]


def test_every_block_is_run_or_checked():
    assert {kind for kind, _ in BLOCKS} == {"sh", "bash", "python"}
    assert len(blocks("bash")) == 2
    assert len(blocks("python")) == 2


@pytest.mark.engine
def test_shell_blocks_run(server, tmp_path):
    """Each curl and trimtab command, word for word but for address and key."""
    key = server.http.headers["Authorization"].removeprefix("Bearer ")
    script = "\n".join(["set -euo pipefail", *blocks("bash")])
    script = script.replace("http://localhost:8000", server.url)
    script = script.replace(
        "curl -s", f"curl -sS --fail-with-body -H 'Authorization: Bearer {key}'"
    )
    script = script.replace(
        "trimtab generate",
        f"{shlex.quote(sys.executable)} -m trimtab_server.cli generate "
        f"--url {server.url} --api-key {key}",
    )
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    praise, end = json.JSONDecoder().raw_decode(done.stdout)
    blame, length = json.JSONDecoder().raw_decode(done.stdout[end:].lstrip())
    typed = done.stdout[end:].lstrip()[length:]
    scores = [answer["choices"][0]["guidance"]["scores"]["sentiment"] for answer in (praise, blame)]
    assert scores[0] > scores[1]
    assert len(typed.split()) > 4


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


def test_sh_blocks_name_commands_that_exist():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    for code in blocks("sh"):
        words = shlex.split(code, comments=True)
        assert words[0] in {"make", "trimtab", "vllm", "curl"}
        if words[0] == "make":
            assert set(words) - {"make"} <= targets


def test_the_table_of_fields_is_complete():
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| ([^|]*) \|$", README, re.M))
    assert set(FIELDS) <= set(rows)
    for name, field in GuidanceParams.model_fields.items():
        if name != "scorers":
            assert rows[name].strip("`").lower() == str(field.default).lower().removesuffix(".0")


def test_architecture_has_a_line_for_every_module():
    """The line is the first of the module's own docstring."""
    lines = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            if docstring := ast.get_docstring(ast.parse(path.read_text())):
                name = path.relative_to(ROOT / package.split("/")[0])
                lines.append(f"- `{name}`: {docstring.splitlines()[0]}")
    text = (ROOT / "docs" / "architecture.md").read_text()
    assert text.split("## A line a module\n\n")[1] == "\n".join(lines) + "\n"


def test_deployment_files_name_what_exists():
    compose = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
    service = compose["services"]["trimtab"]
    folder = ROOT / "deploy" / service["build"]["context"]
    assert (folder / service["build"]["dockerfile"]).is_file()
    settings = (ROOT / "docs" / "settings.md").read_text()
    assert all(f"`{name}`" in settings for name in service["environment"])
    mounted = compose["services"]["prometheus"]["volumes"][0].split(":")[0]
    scrape = yaml.safe_load((ROOT / "deploy" / mounted).read_text())["scrape_configs"][0]
    assert scrape["static_configs"][0]["targets"] == ["trimtab:8000"]
    for image in ("cpu", "gpu"):
        dockerfile = (ROOT / "docker" / f"Dockerfile.{image}").read_text()
        assert "\nUSER trimtab\n" in dockerfile
        for source in re.findall(r"^COPY (?:--\S+ )?(.*) \S+$", dockerfile, re.M):
            assert all((ROOT / name).exists() for name in source.split())
