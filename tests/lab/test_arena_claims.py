"""An arena or a sweep touches nothing that it did not make, and reads nothing that is damaged."""

import json
import random
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from arena_fakes import TASK, FakeBench, methods
from trimtab.errors import TrimtabError
from trimtab_lab.arena import arena, judge, sweep, tiny, values
from trimtab_lab.arena.judge import Verdict, verdicts
from trimtab_lab.arena.methods import METHODS
from trimtab_lab.arena.runs import Run, find, read, save
from trimtab_models import outputs
from trimtab_server.commands.arena import arena as arena_command
from trimtab_server.commands.sweep import sweep as sweep_command

OWN = """
name: mine
base: ./no-such-model
prompts: {train: p.txt, test: p.txt}
rewards: {gold: "no.such:reward"}
gold: gold
supports: {gold: [0, 1]}
"""


@pytest.fixture
def trimtab(tmp_path, monkeypatch):
    """The commands in this process, where a directory holds other files."""
    import vllm  # noqa: F401  # its logger keeps the stdout of its first import

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("trimtab.logs.configure_logging", lambda: None)
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    Path("mine.yaml").write_text(OWN)
    Path("p.txt").write_text("How was the cafe?\n")
    Path("held").mkdir()
    Path("held/results.json").write_text('{"years": "of work"}')
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command("arena")(arena_command)
    extra = {"allow_extra_args": True, "ignore_unknown_options": True}
    app.command("sweep", context_settings=extra)(sweep_command)
    return lambda *arguments: CliRunner().invoke(app, arguments, catch_exceptions=False)


def tree(top):
    return {path: path.read_bytes() for path in sorted(Path(top).rglob("*")) if path.is_file()}


SWEEP = ["sweep", "./no-such-model", "--scorer", "a=./none", "--prompts", "p.txt"]
SWEEP += ["--reward", "no.such:reward"]


@pytest.mark.parametrize(
    ("out", "says"),
    [
        ("held", "not empty, and this command did not make its content (results.json)"),
        ("p.txt", "p.txt is not a directory"),
        ("p.txt/out", "nothing can be written into"),
        ("/proc/out", "nothing can be written into /proc"),
        (".", "not empty"),
        ("other", "other was made with other settings"),
    ],
)
@pytest.mark.parametrize(
    "command", [["arena", "tiny"], ["arena", "mine.yaml"], SWEEP], ids=" ".join
)
def test_what_is_in_the_way_is_named_before_anything_is_loaded(trimtab, command, out, says):
    outputs.claim("other", {"world": "another", "command": "another"})
    before = tree(".")
    done = trimtab(*command, "--out", out)
    assert done.exit_code == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("trimtab: ")
    assert says in line
    assert tree(".") == before


@pytest.mark.parametrize("command", [["arena", "mine.yaml"], SWEEP], ids=" ".join)
def test_with_a_place_of_its_own_it_is_the_model_that_is_missing(trimtab, command):
    """The control."""
    before = tree(".")
    done = trimtab(*command, "--out", "new/place")
    assert done.exit_code == 1
    assert "no-such-model cannot be loaded" in done.stderr
    assert tree(".") == before


@pytest.mark.slow
def test_an_arena_is_taken_up_again_beside_what_the_user_put_there(tmp_path):
    tiny.compare(tmp_path, "trimtab arena tiny")
    (tmp_path / "notes.txt").write_text("mine")
    tiny.compare(tmp_path, "trimtab arena tiny")
    assert (tmp_path / "notes.txt").read_text() == "mine"
    with pytest.raises(outputs.InTheWay, match=r"world \('tiny' then, 'made-up' now\)"):
        arena.compare(TASK, tmp_path, FakeBench().scale)


def damages(content, draw):
    """Cuts, flipped bits, and JSON that is something else."""
    for _ in range(200):
        at = draw.randrange(len(content))
        yield content[:at]
        yield content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :]
    yield from (b"", b"{}", b"[]", b"null", b"3", b'"x"', b"\xff\xfe", b"[" * 100_000)


def test_a_damaged_run_is_named_or_is_a_run(tmp_path):
    bench = FakeBench()
    save(tmp_path, bench.run(METHODS["pargs"], 2.0))
    [path] = tmp_path.iterdir()
    settings = bench.settings(METHODS["pargs"], 2.0)
    named = 0
    for damage in damages(path.read_bytes(), random.Random(0)):
        path.write_bytes(damage)
        for reader in (lambda: read(tmp_path)[0], lambda: find(tmp_path, "pargs", 2, settings)):
            try:
                assert isinstance(reader(), Run)
            except (outputs.Damaged, TrimtabError) as error:
                named += 1
                assert str(path) in str(error)  # noqa: PT017  either is right
                assert "remove" in str(error)  # noqa: PT017
    assert named > 400


def test_damaged_samples_are_named_or_are_samples(tmp_path):
    bench, path = FakeBench(), tmp_path / "base-samples.npz"
    drawn = arena.base_samples(bench, path)
    bench.base_samples = None  # not called again
    named = 0
    for damage in damages(path.read_bytes(), random.Random(1)):
        path.write_bytes(damage)
        try:
            assert arena.base_samples(bench, path).keys() == drawn.keys()
        except (outputs.Damaged, TrimtabError) as error:
            named += 1
            assert str(path) in str(error)  # noqa: PT017  either is right
    assert named > 200


def test_damaged_verdicts_and_errors_are_named(tmp_path, monkeypatch):
    bench, path = FakeBench(), tmp_path / "judged.json"
    runs = [bench.run(METHODS["pargs"], 2.0)]
    monkeypatch.setattr(judge, "compare", lambda *_: Verdict(0.5, 0.25, 0.25, 0.1, 24))
    result = verdicts("judge:x", bench.texts, runs, runs[0], path)
    monkeypatch.setattr(judge, "compare", None)  # not called again
    assert verdicts("judge:x", bench.texts, runs, runs[0], path) == result
    monkeypatch.setattr(judge, "compare", lambda *_: Verdict(0.5, 0.25, 0.25, 0.1, 24))
    for damage in damages(path.read_bytes(), random.Random(2)):
        path.write_bytes(damage)
        try:
            verdicts("judge:x", bench.texts, runs, runs[0], path)
        except outputs.Damaged as error:
            assert str(path) in str(error)  # noqa: PT017  either is right
    for text in ("", "[]", '{"td-lambda": "x"}', '{"td-lambda": {}}'):
        (tmp_path / "values.json").write_text(text)
        with pytest.raises(outputs.Damaged, match=r"values\.json is damaged"):
            values.errors(TASK.world, tmp_path, {}, [], tmp_path / "values.json")


def test_runs_are_read_past_what_a_kill_left(tmp_path):
    bench = FakeBench()
    arena.climb(bench, methods("base"), tmp_path)
    (tmp_path / ".pargs_@_2.json.part").write_text("{")
    (tmp_path / ".x.json").write_text("{")
    assert len(read(tmp_path)) == 1


def test_a_sweep_marks_its_directory(tmp_path):
    assert json.loads((outputs.claim(tmp_path, sweep.MADE_BY) / outputs.MARK).read_text())
