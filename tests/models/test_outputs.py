"""What stands in the way of a result stays as it is, and is named before any work."""

import json
import os
import random
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from transformers import AutoTokenizer

from trimtab_lab.worlds import __main__ as worlds
from trimtab_models import checkpoint, data, demo, manifest, outputs
from trimtab_models.demo import build as demo_build
from trimtab_models.demo import foreign
from trimtab_models.networks import scalar_head
from trimtab_models.training.__main__ import main
from trimtab_models.training.grounded import job
from trimtab_models.training.grounded.settings import GroundedConfig
from trimtab_models.training.saves import SafeTrainer

pytestmark = pytest.mark.scorecard(letter="T")

BY = {"command": "test", "size": 1}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def tree(top: Path) -> dict[str, bytes | str | None]:
    """All that lies under a directory, links unfollowed."""
    return {
        str(path.relative_to(top)): os.readlink(path)
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else None
        for path in sorted(top.rglob("*"))
    }


def test_a_directory_is_claimed_by_one_work(tmp_path: Path) -> None:
    folder = outputs.claim(tmp_path / "new" / "one", BY)
    (folder / "notes.txt").write_text("mine")
    before = tree(tmp_path)
    assert outputs.claim(folder, BY) == folder
    with pytest.raises(outputs.InTheWay, match=r"other settings; .*size \(1 then, 2 now\)"):
        outputs.claim(folder, BY | {"size": 2})
    for name in "abcde":
        (tmp_path / "held" / name).mkdir(parents=True)
    with pytest.raises(outputs.InTheWay, match=r"not empty, .*\(a, b, c and 2 more\)"):
        outputs.claim(tmp_path / "held", BY)
    shutil.rmtree(tmp_path / "held")
    assert tree(tmp_path) == before
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    assert outputs.claim(tmp_path / "link", BY) == tmp_path / "empty"
    for damage in ("", "{", "[]", '{"command": "test", "command": "test"}', "\xff"):
        (folder / outputs.MARK).write_bytes(damage.encode("latin-1"))
        with pytest.raises(outputs.Damaged, match=r"\.trimtab\.json is damaged"):
            outputs.claim(folder, BY)


def test_a_file_needs_a_place(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("mine")
    for name, says in (
        ("pipe", "is not a file"),
        (".", "is not a file"),
        ("no/file", "there is no directory"),
        ("file/file", "there is no directory"),
        ("/proc/file", "cannot be written|nothing can be written"),
    ):
        with pytest.raises(outputs.InTheWay, match=says):
            outputs.file(tmp_path / name)
    assert outputs.file(tmp_path / "file") == tmp_path / "file"


def test_a_file_that_is_not_written_whole_does_not_appear(tmp_path: Path) -> None:
    outputs.put(tmp_path / "file", "old")
    with suppress(KeyboardInterrupt), outputs.writing(tmp_path / "file") as part:
        part.write_text("half")
        raise KeyboardInterrupt
    assert tree(tmp_path) == {"file": b"old"}


def _rows(top: Path) -> Path:
    rows = [
        {"prompt": f"How was it, {n % 6}?", "completion": "good" * (n % 3 + 1), "reward": n % 2}
        for n in range(24)
    ]
    data.write(top / "rollouts.jsonl", rows)
    return top / "rollouts.jsonl"


def _train(top: Path, out: str | Path, *sets: str) -> int:
    overrides = [f"base={top / 'base'}", f"data={top / 'rollouts.jsonl'}", f"out={out}", *sets]
    return main(["td-lambda", *(part for one in overrides for part in ("--set", one))])


def _other_files(top: Path) -> Path:
    (top / "out" / "deep").mkdir(parents=True)
    (top / "out" / "deep" / "thesis.txt").write_text("years of work")
    return top / "out"


def _a_link_to_other_files(top: Path) -> Path:
    _other_files(top).rename(top / "elsewhere")
    (top / "out").symlink_to(top / "elsewhere")
    return top / "out"


def _links_in_a_circle(top: Path) -> Path:
    (top / "out").symlink_to(top / "out")
    return top / "out"


def _a_scorer(top: Path) -> Path:
    shutil.copytree(demo.scorers()["brevity"], top / "out")
    manifest.write_manifest(top / "out")
    return top / "out"


def _a_run_that_is_a_file(top: Path) -> Path:
    (top / "out.run").write_text("mine")
    return top / "out"


def _a_log_of_other_work(top: Path) -> Path:
    (top / "out.run").mkdir()
    (top / "out.run" / "log.jsonl").write_text('{"day": 1}\n')
    return top / "out"


def _data_in_the_run(top: Path) -> Path:
    (top / "out.run").mkdir()
    (top / "rollouts.jsonl").rename(top / "out.run" / "rollouts.jsonl")
    (top / "rollouts.jsonl").symlink_to("out.run/rollouts.jsonl")
    return top / "out"


def _other_checkpoints(top: Path) -> Path:
    (top / "out.run" / "checkpoint-8").mkdir(parents=True)
    text = json.dumps({"objective": "td-lambda", "seed": 7})
    (top / "out.run" / "checkpoint-8" / "fingerprint.json").write_text(text)
    return top / "out"


def _a_file_above(top: Path) -> Path:
    (top / "file").write_text("mine")
    return top / "file" / "out"


WAYS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "other files": (_other_files, "not empty, and this command did not make its content (deep)"),
    "a link to other files": (_a_link_to_other_files, "not empty"),
    "links in a circle": (_links_in_a_circle, "cannot be resolved"),
    "a scorer of other making": (_a_scorer, "not empty"),
    "the data": (lambda top: top / "rollouts.jsonl", "not a directory"),
    "the directory of the data": (lambda top: top, "not empty"),
    "the base": (lambda top: top / "base", "not empty"),
    "the working directory": (lambda top: Path(), "or contains the working directory"),
    "a mount point": (lambda top: Path("/proc"), "not empty"),
    "an unwritable place": (lambda top: Path("/proc/out"), "nothing can be written into /proc"),
    "a file above": (_a_file_above, "nothing can be written into"),
    "a run that is a file": (_a_run_that_is_a_file, "out.run is not a directory"),
    "a log of other work": (_a_log_of_other_work, "is not the log of a training"),
    "data in the run": (_data_in_the_run, "out.run is or contains data"),
    "checkpoints of other work": (_other_checkpoints, "seed (7 then, 0 now)"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("objective", ["td-lambda", "grounded-mle"])
def test_training_names_what_is_in_the_way_and_leaves_it(
    way: str,
    objective: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The base cannot be loaded, which would be seen if anything came before the check."""
    top = tmp_path / "top"
    (top / "base").mkdir(parents=True)
    (top / "base" / "config.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    _rows(top)
    prepare, says = WAYS[way]
    out = prepare(top)
    before = tree(tmp_path)
    sets = [f"objective={objective}"]
    if objective != "td-lambda":
        sets += ["reward=trimtab_models.demo.oracles:sentiment"]
    overrides = [f"base={top / 'base'}", f"data={top / 'rollouts.jsonl'}", f"out={out}", *sets]
    assert main([part for one in overrides for part in ("--set", one)]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("trimtab: ")
    assert says in line
    assert tree(tmp_path) == before
    # The control: with a place of its own, it is the base that is wrong.
    control = [*overrides[:2], f"out={tmp_path / 'new' / 'own'}", *sets]
    assert main([part for one in control for part in ("--set", one)]) == 1
    assert "tokenizer" in capsys.readouterr().err
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", ["data", "validation", "scorer", "base"])
def test_a_result_does_not_take_the_place_of_what_it_is_made_from(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Even where the same command made it."""
    _rows(tmp_path)
    sets = {"base": "nowhere", "data": str(tmp_path / "rollouts.jsonl"), name: str(tmp_path / "x")}
    overrides = [f"{key}={value}" for key, value in sets.items()] + [f"out={tmp_path / 'x'}"]
    arguments = [part for one in overrides for part in ("--set", one)]
    (tmp_path / "x").mkdir()
    assert main(arguments) == 1
    assert f"x is or contains {name}" in capsys.readouterr().err


def test_a_finished_training_stays_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    rows = _rows(tmp_path)
    (tmp_path / "base").symlink_to(demo.base())
    (tmp_path / "out").mkdir()
    small = ["layers=1", "trainer.disable_tqdm=true"]
    assert _train(tmp_path, tmp_path / "out", *small) == 0
    manifest.verify(tmp_path / "out")
    assert checkpoint.read_info(tmp_path / "out").objective.startswith("TD(λ)")
    (tmp_path / "out" / "README.md").write_text("years of work")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    before = tree(tmp_path / "out")
    capsys.readouterr()
    assert _train(tmp_path, tmp_path / "out", *small) == 0
    assert "is finished" in caplog.text
    assert tree(tmp_path / "out") == before
    assert _train(tmp_path, tmp_path / "out", *small, "epochs=2") == 1
    assert "other settings; changed since: epochs (1.0 then, 2.0 now)" in capsys.readouterr().err
    data.write(rows, data.read(rows)[1:])
    assert _train(tmp_path, tmp_path / "out", *small) == 1
    assert "changed since: the data" in capsys.readouterr().err
    assert tree(tmp_path / "out") == before
    _rows(tmp_path)
    (tmp_path / "out" / "config.json").write_text("{}")
    assert _train(tmp_path, tmp_path / "out", *small) == 1
    assert "config.json has 2 bytes" in capsys.readouterr().err


def test_a_disk_that_is_full_at_the_end_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _rows(tmp_path)
    (tmp_path / "base").symlink_to(demo.base())
    small = ["layers=1", "trainer.disable_tqdm=true"]
    assert _train(tmp_path, tmp_path / "whole", *small) == 0

    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr("trimtab_models.checkpoint.card", full)
        assert _train(tmp_path, tmp_path / "out", *small) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(r"trimtab: .*out could not be written: .*No space.* same command .*", line)
    assert {path.name for path in tmp_path.iterdir() if "out" in path.name} == {
        *("rollouts.jsonl", "out.run")
    }
    monkeypatch.setattr(SafeTrainer, "train", None)  # nothing is trained again
    assert _train(tmp_path, tmp_path / "out", *small) == 0
    weights = [tmp_path / name / "model.safetensors" for name in ("out", "whole")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_finished_grounded_training_stays_as_it_is(tmp_path: Path) -> None:
    data.write(tmp_path / "x.jsonl", [{"prompt": demo.chat("Hi"), "completion": "Good."}] * 4)
    fields: dict[str, Any] = {"base": "demo", "data": str(tmp_path / "x.jsonl"), "layers": 1}
    fields |= {"steps": 1, "period": 1, "batch_size": 2, "k": 2, "rankings": 2}
    fields |= {"objective": "grounded-mle", "max_new_tokens": 4, "out": tmp_path / "out"}
    config = GroundedConfig(reward="trimtab_models.demo.oracles:sentiment", **fields)
    job.run(config)
    before = tree(tmp_path)
    job.run(config)
    assert tree(tmp_path) == before
    with pytest.raises(outputs.InTheWay, match="alpha"):
        job.run(config.model_copy(update={"alpha": 0.5}))
    assert tree(tmp_path) == before


def test_a_checkpoint_takes_no_place_of_other_files(tmp_path: Path) -> None:
    model = scalar_head(demo.base())
    info = checkpoint.read_info(demo.scorers()["brevity"])
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for _ in range(2):  # the second time in place of the first
        checkpoint.save(model, None, info, tmp_path / "link")
        manifest.verify(tmp_path / "real")
    assert (tmp_path / "link").is_symlink()
    (tmp_path / "real" / "sub").mkdir()
    (tmp_path / "real" / "sub" / "notes.txt").write_text("mine")
    before = tree(tmp_path)
    with pytest.raises(outputs.InTheWay, match=r"holds 'sub/notes\.txt'"):
        checkpoint.save(model, None, info, tmp_path / "link")
    with pytest.raises(outputs.InTheWay, match="not a directory"):
        checkpoint.save(model, None, info, tmp_path / "real" / "README.md")
    assert tree(tmp_path) == before


def test_worlds_and_demos_take_directories_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "notes.txt").write_text("mine")
    before = tree(tmp_path)
    with pytest.raises(SystemExit, match=r"trimtab: .* not empty"):
        worlds.main(["sums", "--out", str(tmp_path)])
    for build in (demo_build.build, lambda out: foreign.build("pythia", out)):
        with pytest.raises(outputs.InTheWay, match="not empty"):
            build(tmp_path)
    assert tree(tmp_path) == before
    assert outputs.is_result_of(demo.base().parent, {"world": "demo"})


def test_a_directory_of_data_may_hold_results(tmp_path: Path) -> None:
    rows = _rows(tmp_path)
    (tmp_path / "scorer.jsonl").mkdir()
    assert len(data.read(tmp_path)) == len(data.read(rows))


def _flipped(content: bytes) -> list[bytes]:
    """Every way to flip one bit."""
    return [
        content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]
        for at in range(len(content))
        for bit in range(8)
    ]


def test_json_of_ours_is_read_or_damaged(tmp_path: Path) -> None:
    outputs.put(tmp_path / "file", json.dumps({"one": 0.5, "two": 1.5}))
    content = (tmp_path / "file").read_bytes()
    draw = random.Random(0)
    cut = [content[:n] for n in range(len(content))]
    noise = [draw.randbytes(draw.randint(0, 40)) for _ in range(200)]
    deep = [b"[" * 100_000, b"null", b"[]", b'{"one": "x"}', b'{"one": 1, "one": 1}']
    right, messages = 0, []
    for damage in [*_flipped(content), *cut, *noise, *deep]:
        (tmp_path / "file").write_bytes(damage)
        try:
            values = outputs.read(tmp_path / "file", dict[str, float], "remove it")
        except outputs.Damaged as error:
            messages.append(str(error))
        else:
            right += 1
            assert all(isinstance(value, float) for value in values.values())
    assert 0 < right < len(_flipped(content))
    start = f"{tmp_path / 'file'} is damaged: "
    assert all(line.startswith(start) and line.endswith("; remove it.") for line in messages)


def test_the_tokenizer_of_the_demo_still_loads() -> None:
    """A mark beside checkpoints is of no concern to what loads them."""
    assert len(AutoTokenizer.from_pretrained(demo.base())) == 1024
