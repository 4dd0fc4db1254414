"""Every command on every page is one that works.

Here it is parsed, as far as that goes without its model: options, settings, vLLM's flags, presets,
bodies of requests, files of this repository. The blocks of bash run word for word in other tests;
tests/acceptance/test_page_runs.py runs what takes long.
"""

import ast
import importlib.util
import itertools
import json
import re
import warnings
from pathlib import Path

import pytest
import typer
from pages import FENCE, OTHERS, PAGES, ROOT, commands, mentions, page_commands, scripts, variables
from typer.testing import CliRunner

from live import made
from trimtab.params import GuidanceParams
from trimtab_models.training import config
from trimtab_server import cli, launcher, protocol
from trimtab_server.settings import Settings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # vLLM's import warns of its own code
    from trimtab_server.vllm import engine

OF_VLLM = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
NOT_HERE = ("vllm_router", "vllm")
"""Packages whose modules are not looked at."""
PLACEHOLDER = re.compile(r"[A-Z]+")
LEFT_OUT = {"base": "BASE", "data": "DATA", "out": "OUT"}
"""Settings of a training run, where a page shows another one alone."""


def of_trimtab(args: list[str]) -> None:
    """Its options parse; `serve` and `train` also read their settings."""
    name, *rest = args
    if name == "serve":
        of_serve(args)
        return
    command = typer.main.get_command(cli.app).commands[name]
    if hasattr(command, "commands"):
        name, *rest = rest
        command = command.commands[name]
    read = command.make_context(name, rest).params
    if args[0] == "train":
        of_training(read["objective"], read["config"], read["set_"] or [])


def of_training(objective: str | None, file: Path | None, settings: list[str]) -> None:
    """Its settings are valid."""
    present = {override.partition("=")[0] for override in settings}
    left = {key: value for key, value in LEFT_OUT.items() if key not in present}
    fill = [] if file is not None else [f"{key}={value}" for key, value in left.items()]
    config.load(None if file is None else ROOT / file, [*fill, *settings], objective)


def of_serve(args: list[str]) -> None:
    """Its settings are valid, and so are the flags that go to vLLM."""
    served: list[tuple[Settings, list[str]]] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(launcher, "serve", lambda *both: served.append(both))
        done = CliRunner().invoke(cli.app, args)
    assert done.exit_code == 0, done.output
    [(chosen, others)] = served
    if chosen.upstream is None:
        engine.parse(chosen, others)
    else:
        assert not others


def of_python(args: list[str]) -> None:
    """Its script or module exists, and names its options."""
    if args[0] == "-c":
        ast.parse(args[1])
    elif args[0] == "-m":
        package = args[1].partition(".")[0]
        if package not in NOT_HERE:
            assert importlib.util.find_spec(args[1]), args[1]
        if args[1] == "trimtab_models.training":
            pairs = list(itertools.pairwise(args))
            file = next((Path(value) for key, value in pairs if key == "--config"), None)
            objective = None if args[2:3] == [] or args[2].startswith("--") else args[2]
            of_training(objective, file, [value for key, value in pairs if key == "--set"])
    else:
        source = (ROOT / args[0]).read_text()
        options = [word for word in args[1:] if word.startswith("--")]
        assert all(f'"{option}"' in source for option in options), options


def of_make(args: list[str]) -> None:
    """Its targets and variables exist."""
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^([\w%-]+):", makefile, re.M)
    assigned = re.findall(r"^(\w+) \?=", makefile, re.M)
    for word in args:
        name, equals, _ = word.partition("=")
        kinds = assigned if equals else targets
        assert any(re.fullmatch(kind.replace("%", r"\w"), name) for kind in kinds), word


def of_curl(args: list[str]) -> None:
    """Its route exists, and its body is one."""
    [url] = [word for word in args if word.startswith(("http://", "https://"))]
    path = "/" + url.split("/", 3)[3].partition("?")[0]
    body = next((value for key, value in itertools.pairwise(args) if key == "-d"), "{}")
    fields = json.loads(body)
    if path == "/generate":
        protocol.parse(fields)
    elif "guidance" in fields:
        GuidanceParams.parse(fields["guidance"])
    if path not in OF_VLLM:
        patterns = [getattr(route, "path_regex", None) for route in made().routes]
        assert any(pattern.match(path) for pattern in patterns if pattern), path


def of_accelerate(args: list[str]) -> None:
    of_python(args[args.index("-m") :])


CHECKS = {
    "trimtab": of_trimtab,
    "python": of_python,
    "make": of_make,
    "curl": of_curl,
    "accelerate": of_accelerate,
}


def named(entries):
    return [pytest.param(words, id=f"{page}: {' '.join(words)[:70]}") for page, words in entries]


@pytest.mark.parametrize("words", named(page_commands(scripts)))
def test_a_command_of_a_page_is_valid(words, monkeypatch, tmp_path):
    for variable in variables(words):
        name, _, value = variable.partition("=")
        if name.startswith("TRIMTAB_"):
            assert name.removeprefix("TRIMTAB_").lower() in Settings.model_fields, name
            monkeypatch.setenv(name, value)
    program, *args = words[len(variables(words)) :]
    for word in args:
        if re.match(r"(configs|deploy|docker|benchmarks|scripts|models|examples)/", word):
            assert (ROOT / word).exists(), word
    monkeypatch.chdir(tmp_path)
    assert program in (*CHECKS, *OTHERS)
    if program in CHECKS:
        CHECKS[program](args)


@pytest.mark.parametrize("words", named(page_commands(mentions)))
def test_a_command_in_a_sentence_names_what_exists(words):
    """Arguments may be left out there."""
    program, *args = words
    if program != "trimtab":
        if program in ("python", "make"):
            CHECKS[program](args)
        return
    command = typer.main.get_command(cli.app)
    while args and hasattr(command, "commands") and not args[0].startswith("-"):
        if PLACEHOLDER.fullmatch(args[0]):
            return
        command, args = command.commands[args[0]], args[1:]
    known = {option for one in command.params for option in (*one.opts, *one.secondary_opts)}
    options = {word for word in args if word.startswith("--")}
    if command.name != "serve":  # whose other flags are vLLM's
        assert options <= known | {"--help"}


def test_an_invalid_command_is_refused():
    for line in (
        "trimtab serve demo --scorer kindness=./kindness --no-such-flag 3",
        "trimtab generate hello --beat 3",
        "trimtab train td-lambda --set epoch=3",
        "trimtab arena reviews --fast",
        "python benchmarks/none.py",
        "python benchmarks/decode.py --slow",
        "python -m trimtab_lab.world",
        "make tests",
        "curl -s http://localhost:8000/generates",
        """curl -s http://localhost:8000/generate -d '{"prompt": "x", "betta": 1}'""",
    ):
        [[program, *args]] = commands(line)
        with pytest.raises((Exception, SystemExit)):
            CHECKS[program](args)


def test_blocks_of_every_kind_are_seen():
    pages = {page for page, _ in page_commands(scripts)}
    assert {"README.md", "deploy/README.md", "docs/search.md", "docs/scaling.md"} <= pages
    assert "docs/operations.md" in {page for page, _ in page_commands(mentions)}


def bodies() -> list[dict]:
    return [
        json.loads(code)
        for page in PAGES
        for _, language, code in FENCE.findall(page.read_text())
        if language == "json" and page.name != "presets.md"  # test_preset_docs.py sends it
    ]


@pytest.mark.parametrize("body", bodies())
def test_a_body_of_a_page_is_valid(body):
    if "custom_id" in body:
        GuidanceParams.parse(body["body"]["guidance"])
    else:
        protocol.parse(body)


@pytest.mark.engine
def test_the_search_of_its_page_runs(server):
    [words] = commands(next(scripts((ROOT / "docs" / "search.md").read_text())))
    body = next(value for key, value in itertools.pairwise(words) if key == "-d")
    answer = server.generate(**json.loads(body))
    assert answer["choices"][0]["search"]["method"] == "beam"
