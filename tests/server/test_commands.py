"""generate, chat, doctor and inspect, against a server without an engine; and errors of usage."""

import inspect as signatures
import json
import re
import shlex
import socket
import sys
from itertools import cycle
from pathlib import Path

import pytest
import typer
from conftest import KEY
from typer.testing import CliRunner

from live import serving
from trimtab.params import FIELDS, GuidanceParams
from trimtab_models import demo, manifest
from trimtab_server import cli, client, usage
from trimtab_server.commands import chat_session, generate
from trimtab_server.protocol import GenerateRequest

DOCS = Path(__file__).parents[2] / "docs" / "cli.md"
SENTIMENT = str(demo.scorers()["sentiment"])


@pytest.fixture(scope="module")
def url():
    with serving() as address:
        yield address


@pytest.fixture
def run(url, monkeypatch):
    """Run a command line as `main` does; `speaks` sends it to the server."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TRIMTAB_API_KEY", KEY)
    monkeypatch.delenv("TRIMTAB_PORT", raising=False)

    def ran(*args, lines=None):
        at = ["--url", url] if args[0] in ("generate", "chat") and "--url" not in args else []
        with_main = typer.Typer()  # CliRunner runs an app; this one ends as `main` does
        with_main.command(context_settings={"ignore_unknown_options": True})(
            lambda: usage.run(cli.app)
        )
        monkeypatch.setattr(sys, "argv", ["trimtab", *args, *at])
        return CliRunner().invoke(with_main, [], input=lines)

    return ran


def one_line(text):
    return len(text.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("args", "meant"),
    [
        (["generate", "x", "--beat", "3"], "did you mean --beta?"),
        (["generate", "x", "--temprature", "3"], "did you mean --temperature?"),
        (["chat", "--scorers", "a=1"], "did you mean --scorer?"),
        (["serv", "demo"], "did you mean serve?"),
        (["demo", "fech"], "did you mean fetch?"),
        (["--verson"], "did you mean --version?"),
        (["generate", "x", "--qqqqq"], "see `trimtab generate --help`."),
        (["generate", "x", "--n", "many"], "see `trimtab generate --help`."),
        (["serve", "--max-model-len", "9", "demo"], "model first"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_error_of_usage_is_one_line_with_what_was_meant(run, args, meant):
    done = run(*args)
    assert done.exit_code == usage.USAGE
    assert meant in done.stderr
    assert one_line(done.stderr), done.stderr
    assert done.stderr.startswith("trimtab: ")
    assert done.stderr.count("did you mean") <= 1


def test_version_and_help(run):
    assert run("--version").output == run("version").output
    assert re.fullmatch(r"trimtab [\d.]+\S*\n", run("--version").output)
    for name in ("serve", "generate", "chat", "doctor", "inspect"):
        assert name in run("--help").output
    text = run("generate", "--help").output
    assert all(f"[default: ({value})]" in text for value in ("16", "0.98", "mean", "128", "fail"))
    assert "--help-vllm" in run("serve", "--help").output


def test_completion_knows_the_commands(run, monkeypatch):
    monkeypatch.setenv("_TRIMTAB_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "trimtab do")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert run("").output.split() == ["doctor"]


def test_ctrl_c_ends_with_130(run, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(client, "whole", interrupted)
    done = run("generate", "x")
    assert done.exit_code == usage.INTERRUPTED
    assert "Traceback" not in done.stderr


def test_generate_has_every_field_of_the_api_with_its_default():
    options = signatures.signature(generate.generate).parameters
    names = {
        "scorer": "scorers",
        "floor": "floors",
        "ceiling": "ceilings",
        "principle": "principles",
    }
    fields = {names.get(name, name): option for name, option in options.items()}
    known = {*GenerateRequest.model_fields, *FIELDS, "search"}
    assert set(fields) - known == {"context", "json_", "raw", "url", "api_key"}
    assert known <= set(fields)
    for name, field in {**GenerateRequest.model_fields, **GuidanceParams.model_fields}.items():
        shown = fields[name].annotation.__metadata__[0].show_default
        if type(field.default) in (int, float, str):
            assert str(shown).partition(":")[0] == str(field.default), name


def test_a_body_has_what_was_chosen_and_no_more():
    empty = dict.fromkeys(signatures.signature(generate.generate).parameters)
    del empty["context"]
    text = generate.body({**empty, "prompt": "x", "raw": True, "beta": 0.0, "trace": False})
    assert text == {"prompt": "x", "beta": 0.0}
    chosen = {
        "prompt_token_ids": "1,2",
        "scorer": ["a=1", "b=-0.5"],
        "floor": ["c=0.5"],
        "ceiling": ["a=0.9"],
        "utility": ["a=target:40", "b=mean"],
        "principle": ["Be kind.", "No e=mc2.", "Be brief.=-1.5"],
        "caution": ["a=2"],
        "k": "all",
        "search": "smc,particles=4",
        "stop": ["."],
        "answer_token_ids": "4",
        "stop_token_ids": "3",
    }
    assert generate.body({**empty, **chosen}) == {
        "prompt_token_ids": [1, 2],
        "scorers": {"a": 1.0, "b": -0.5},
        "floors": {"c": 0.5},
        "ceilings": {"a": 0.9},
        "utility": {"a": {"target": 40.0}, "b": "mean"},
        "principles": [
            {"text": "Be kind.", "weight": 1.0},
            {"text": "No e=mc2.", "weight": 1.0},
            {"text": "Be brief.", "weight": -1.5},
        ],
        "caution": {"a": 2.0},
        "k": "all",
        "search": {"method": "smc", "particles": 4},
        "stop": ["."],
        "answer_token_ids": [4],
        "stop_token_ids": [3],
    }
    block = '{"until":"a,\\n","tokens":9}'
    search = f"beam,width=2,block={block},expand=3"
    assert generate.body({**empty, "prompt": "x", "raw": True, "search": search}) == {
        "prompt": "x",
        "search": {
            "method": "beam",
            "width": 2,
            "block": {"until": "a,\n", "tokens": 9},
            "expand": 3,
        },
    }


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (["x", "--messages", "y.json"], "exactly one of"),
        ([], "exactly one of"),
        (["--messages", "not-there.json"], "No such file"),
        (["--prompt-token-ids", "1,b"], "whole numbers"),
        (["x", "--scorer", "a=b"], "float"),
        (["x", "--floor", "a"], "NAME=REWARD"),
        (["x", "--ceiling", "a"], "NAME=REWARD"),
        (["x", "--utility", "a=median:1"], "NAME=KIND:NUMBER"),
        (["x", "--search", "best_of_n,16"], "METHOD[,key=value"),
        (["x", "--stream", "--json"], "leave --stream out"),
        (["x", "--trace"], "add --json"),
        (["x", "--logprobs", "2"], "add --json"),
        (["x", "--scorer", "nobody=1"], "no scorer of that name"),
        (["x", "--beta", "1000"], "beta"),
        (["x", "--url", "http://127.0.0.1:9"], "no server answers"),
    ],
    ids=" ".join,
)
def test_generate_tells_in_one_line_what_is_wrong(run, args, reason):
    done = run("generate", *args)
    assert done.exit_code == 1
    assert reason in done.stderr
    assert one_line(done.stderr), done.stderr


def test_choices_are_not_interleaved(run):
    """The same seed gives the same text, streamed or not."""
    command = ["generate", "the", "--n", "3", "--seed", "4", "--max-tokens", "9"]
    streamed, whole = run(*command, "--stream").output, run(*command).output
    assert streamed == whole
    assert len(re.findall(r"^\[sentiment .*steps\]$", whole, re.M)) == 3


def test_texts_of_choices_are_in_order():
    parts = [(0, "a", 0), (1, "x", 0), (2, "u", 1), (1, "y", 1), (0, "b", 1)]
    choices = [
        {"index": index, "text": text, "finish_reason": "stop" if end else None}
        for index, text, end in parts
    ]
    assert "".join(client.texts(choices)).split() == ["ab", "xy", "u"]
    assert next(iter(client.texts(choices))) == "a", "the first is passed on at once"


SCRIPT = """/scorer sentment=1
/scorer sentiment=2 formality=0
/beta strong
/beta 4
/record
/sed temperature 0
/set temperature 0
hello there
again
/record
/reset
/set max_tokens 0
refused
/scorer sentiment=x
/help
"""


def test_chat(run):
    done = run("chat", "--max-tokens", "5", "--seed", "1", lines=SCRIPT + "/quit\nnot read\n")
    assert done.exit_code == 0, done.stderr
    assert "Scorers of this server: sentiment, formality." in done.output
    assert "sentiment=2 (function)\nformality=0 (function)" in done.output
    assert "There is no answer with a record yet." in done.output
    assert len(re.findall(r"\[sentiment \S+ · KL \S+ nats · \d steps\]", done.output)) == 2
    assert '"steps": ' in done.output
    assert "The conversation is forgotten." in done.output
    assert chat_session.HELP in done.output
    errors = done.stderr.splitlines()
    assert [error.partition("; ")[2] for error in errors[:3:2]] == [
        "did you mean sentiment?",
        "did you mean /set?",
    ]
    assert "/beta 4" in errors[1]
    assert "max_tokens" in errors[3]
    assert "numbers" in errors[4]
    assert len(errors) == 5


def test_chat_keeps_the_turns(url, monkeypatch):
    bodies = []

    def parts(_, body):
        bodies.append(body)
        yield {"index": 0, "text": "yes", "finish_reason": "stop", "guidance": None}

    monkeypatch.setattr(client, "parts", parts)
    with client.connected(url, KEY) as http:
        session = chat_session.Session(http, {"beta": 2.0}, "Be brief.")
        for line in ("one", "two", "/reset", "three"):
            list(session.say(line))
    contents = [[turn["content"] for turn in body["messages"]] for body in bodies]
    assert contents[1] == ["Be brief.", "one", "yes", "two"]
    assert contents[2] == ["Be brief.", "three"]
    assert bodies[0]["beta"] == 2.0


def test_ctrl_c_stops_an_answer_and_then_the_session(run, monkeypatch):
    interrupt = cycle([False, True])

    def parts(_, body):
        assert [turn["content"] for turn in body["messages"]] == ["hello"]
        yield {"index": 0, "text": "a long", "finish_reason": None}
        raise KeyboardInterrupt

    def read(_):
        if next(interrupt):
            raise KeyboardInterrupt
        return "hello"

    monkeypatch.setattr(client, "parts", parts)
    monkeypatch.setattr("builtins.input", read)
    done = run("chat")
    assert "a long\n[stopped; this turn is forgotten]" in done.output
    assert done.exit_code == usage.INTERRUPTED


def test_chat_without_a_server_or_key(run):
    assert "no server answers" in run("chat", "--url", "http://127.0.0.1:9").stderr
    refused = run("chat", "--api-key", "wrong")
    assert refused.exit_code == 1
    assert "key" in refused.stderr
    assert one_line(refused.stderr)


def checks(done):
    return {check["name"]: check for check in json.loads(done.output)}


def test_doctor_tells_what_would_be_refused(run, tmp_path, monkeypatch):
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
    seen = run("doctor", "--port", "0", "--json")
    assert seen.exit_code == 0, seen.output
    states = {name: check["state"] for name, check in checks(seen).items()}
    assert {"python", "packages", "vllm", "gpu", "port", "cache", "base", "memory", "scorers"} <= {
        *states
    }
    assert "refused" not in states.values()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        busy = run("doctor", "--port", str(taken.getsockname()[1]))
    assert busy.exit_code == 1
    assert re.search(r"^REFUSED  port .*\n +→ --port \d+ is free$", busy.output, re.M)


@pytest.mark.parametrize(
    ("args", "name", "detail"),
    [
        (["demo", "--scorer", "x=./nope"], "scorers", "./nope is neither"),
        (["demo", "--scorer", "x"], "settings", "NAME=PATH"),
        (["./nope", "--scorer", f"x={SENTIMENT}"], "base", "neither a directory"),
        (["demo", "--config", "nope.yaml"], "settings", "nope.yaml"),
        (["demo", "--port", "70000"], "settings", "port"),
    ],
    ids=lambda value: " ".join(value).replace(SENTIMENT, "S") if isinstance(value, list) else "",
)
def test_doctor_refuses_as_serve_does(run, args, name, detail):
    port = [] if "--port" in args else ["--port", "0"]
    done = run("doctor", *args, *port, "--json")
    assert done.exit_code == 1
    assert checks(done)[name]["state"] == "refused"
    assert detail in checks(done)[name]["detail"]
    assert checks(done)[name]["remedy"]


def test_doctor_over_an_upstream_needs_no_engine(run, monkeypatch):
    from trimtab_server.commands import doctor_checks

    monkeypatch.setattr(doctor_checks, "_version", lambda _: None)
    assert checks(run("doctor", "--port", "0", "--json"))["vllm"]["state"] == "refused"
    monkeypatch.setenv("TRIMTAB_UPSTREAM", "http://upstream/v1")
    monkeypatch.setenv("TRIMTAB_UPSTREAM_MODEL", "m")
    done = run("doctor", "--port", "0", "--json")
    assert done.exit_code == 0
    assert checks(done)["vllm"]["state"] == "note"


def test_inspect(run, tmp_path):
    done = run("inspect", SENTIMENT, "--base", "demo", "--json")
    assert done.exit_code == 0, done.output
    facts = json.loads(done.output)
    assert facts["family"] == "head"
    assert facts["base"] == "trimtab-demo-base"
    assert facts["parameters"] == 984193
    assert facts["steers"] is True
    assert facts["manifest"] is True
    assert (facts["problem"], facts["fits"]) == (None, True)
    assert "token by token" in facts["fit"]
    assert re.search(r"^family +head$", run("inspect", SENTIMENT).output, re.M)
    missing = run("inspect", str(tmp_path / "nope"))
    assert missing.exit_code == 1
    assert "neither a checkpoint directory" in missing.stderr
    assert one_line(missing.stderr)


def test_inspect_sees_what_a_server_would_refuse(run, tmp_path, probe):
    own = run("inspect", str(probe), "--base", "demo", "--json")
    assert json.loads(own.output)["fit"].startswith("yes, on the states")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in Path(SENTIMENT).iterdir():
        (damaged / file.name).write_bytes(file.read_bytes())
    (damaged / "tokenizer_config.json").write_text("{}")
    done = run("inspect", str(damaged), "--base", "demo", "--json")
    assert done.exit_code == 1
    assert "tokenizer_config.json" in json.loads(done.output)["problem"]
    assert "fits" not in json.loads(done.output)
    (damaged / manifest.NAME).unlink()
    wrong = run("inspect", f"{damaged},family=vocabulary", "--base", "demo", "--json")
    assert wrong.exit_code == 1
    assert "cannot be served as vocabulary" in json.loads(wrong.output)["problem"]


def test_the_examples_of_the_documentation_run(run, monkeypatch):
    text = DOCS.read_text(encoding="utf-8")
    lines = [
        line
        for block in re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)
        for line in block.splitlines()
    ]
    assert len(lines) == 7
    for example in lines:
        line = re.sub(r'"\$\(.*\)"', SENTIMENT, example).replace("8123", "0")
        typed, pipe, command = line.rpartition(" | ")
        script = shlex.split(typed)[1].encode().decode("unicode_escape") if pipe else None
        done = run(*shlex.split(command)[1:], lines=script)
        assert done.exit_code == 0, (line, done.output, done.stderr)
    documented = set(re.findall(r"`([\w-]+)`", text.split("## Before")[0].split("|---|---|")[1]))
    commands = typer.main.get_command(cli.app).commands
    assert set(commands) <= documented
