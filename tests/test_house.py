"""The house rules that a machine can check."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = (
    "server/trimtab_server",
    "lab/trimtab_lab",
    "guidance/trimtab",
    "models/trimtab_models",
)
BIN = Path(sys.executable).parent


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "format", "--check", "."],
        ["ruff", "check", "."],
        ["mypy"],
        ["lint-imports"],
    ],
    ids=" ".join,
)
def test_tools_are_content(command):
    done = subprocess.run(
        [BIN / command[0], *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


BAD_IMPORTS = {
    "models/trimtab_models/rows.py": ("trimtab", "imports point one way"),
    "server/trimtab_server/recheck.py": ("trimtab_lab", "what serves does not import the lab"),
    "guidance/trimtab/guide.py": ("vllm", "vLLM is imported in one folder"),
    "guidance/trimtab/scorers/head.py": ("trimtab.scorers.text", "scorer families"),
    "models/trimtab_models/objectives/rad.py": ("trimtab_models.objectives.ilql", "objectives"),
    "guidance/trimtab/adapters/transformers.py": ("trimtab.adapters.vllm.ranks", "adapters"),
}
"""An import that each contract forbids."""


def test_every_contract_can_be_broken(tmp_path):
    """The control of lint-imports, on a copy of the house."""
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package,
            tmp_path / Path(package).name,
            ignore=lambda folder, names: [n for n in names if "." in n and not n.endswith(".py")],
        )
    for path, (module, _) in BAD_IMPORTS.items():
        file = tmp_path / path.partition("/")[2]
        file.write_text(f"{file.read_text()}\nimport {module}\n")
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    done = subprocess.run(
        [BIN / "lint-imports", "--no-cache"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(tmp_path), "PATH": str(BIN)},
    )
    assert done.returncode != 0
    broken = [line for line in done.stdout.splitlines() if " BROKEN" in line]
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    assert len(broken) == len(BAD_IMPORTS) == len(contracts["contracts"])
    for _, name in BAD_IMPORTS.values():
        assert any(line.startswith(name) for line in broken), name


@pytest.mark.parametrize("name", ["server", "lab", "guidance", "models"])
def test_top_level_folders_are_not_packages(name, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", f"import {name}"], cwd=tmp_path, capture_output=True, check=False
    )
    assert b"ModuleNotFoundError" in done.stderr


def test_modules_stay_small():
    long = {
        str(path): lines
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if (lines := len(path.read_text().splitlines())) > 400
    }
    assert not long


WAYS_IN = {"pretrained.py", "peft.py"}
"""The modules of trimtab_models that transformers and PEFT load through."""


def test_what_transformers_loads_has_one_way_in():
    """Elsewhere nobody checks for code, questions and weights that are made up."""
    loads = re.compile(r"\.from_pretrained\(|\bAuto(Config|Tokenizer)\b|\btorch\.load\(")
    lines = {
        f"{path.name}: {line.strip()}"
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for line in path.read_text().splitlines()
        if loads.search(line) and path.name not in WAYS_IN
    }
    assert {line for line in lines if "weights_only=True" not in line} == set()
    assert loads.search((ROOT / "models/trimtab_models/pretrained.py").read_text())


RETIRED = (
    *("told", "asked", "found", "given", "brought", "mended", "doubts", "incoming", "untuned"),
    *("quiet", "searched", "described", "practice"),
    *("Again", "HELD_BYTES"),
)
"""Names that say too little; CONTRIBUTING.md: the terms of the field."""


def _names(source: str) -> Iterator[str]:
    """The names that a module binds: variables, attributes, parameters, functions, classes."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield name
            case ast.arg(arg=name) | ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.AsyncFunctionDef(name=name) | ast.ExceptHandler(name=str(name)):
                yield name


def test_retired_names_stay_retired():
    control = "told = 1\ndef f(self, *asked): self.found = given"
    assert {*_names(control)} & {*RETIRED} == {"told", "asked", "found"}
    back = {
        f"{path.relative_to(ROOT)}: {name}"
        for folder in (*PACKAGES, "tests", "benchmarks", "examples")
        for path in (ROOT / folder).rglob("*.py")
        for name in (path.stem, *_names(path.read_text()))
        if name in RETIRED
    }
    assert not back


def test_extras_exclude_each_other():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    assert {"cpu", "gpu", "train", "dev"} <= set(extras)
    [conflict] = project["tool"]["uv"]["conflicts"]
    assert {entry["extra"] for entry in conflict} == {"cpu", "gpu"}


@pytest.mark.slow
def test_trimtab_needs_no_vllm():
    """The transformers adapter works without any extra."""
    code = (
        "import sys; sys.modules['vllm'] = None\n"
        "import trimtab, trimtab.adapters.transformers, trimtab.loading, trimtab.testing\n"
        "import trimtab.adapters.memory, trimtab.adapters.vllm, trimtab.engine\n"
        "import trimtab.adapters.openai.engine, trimtab.adapters.openai.token_ids\n"
        "import trimtab_models.networks, trimtab_models.checkpoint"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
