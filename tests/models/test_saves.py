"""What a kill, a full disk, a damaged file or other data may cost a training run: nothing."""

import errno
import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import LlamaConfig, set_seed

from trimtab_models import manifest, training
from trimtab_models.networks import scalar_head
from trimtab_models.objectives import OBJECTIVES
from trimtab_models.rows import Rollout
from trimtab_models.training import saves

pytestmark = [pytest.mark.scorecard(letter="T"), pytest.mark.slow]  # trains, again and again


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _train(run: Path, label: float = 1.0, **changes: Any) -> Any:
    set_seed(0)
    config = LlamaConfig(
        vocab_size=8,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        pad_token_id=0,
    )
    model = scalar_head(config)
    items = [Rollout([1], [2 + n % 5, 3], label * n) for n in range(32)]
    options: dict[str, Any] = {
        "epochs": 3,
        "batch_size": 4,
        "save_steps": 6,
        "logging_steps": 3,
        "disable_tqdm": True,
    }
    training.train(OBJECTIVES["td-lambda"](), model, items, run, pad_id=0, **options | changes)
    return model


def _stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Fail when the save of a step begins."""
    save = saves.SafeTrainer._save_checkpoint

    def failing(self: Any, *arguments: Any) -> None:
        if self.state.global_step == step:
            raise KeyboardInterrupt
        save(self, *arguments)

    monkeypatch.setattr(saves.SafeTrainer, "_save_checkpoint", failing)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("interrupted")
    with pytest.MonkeyPatch.context() as patch:
        _stop_at(patch, 18)
        with pytest.raises(KeyboardInterrupt):
            _train(run)
    assert [path.name for path in saves.checkpoints(run)] == ["checkpoint-6", "checkpoint-12"]
    return run


@pytest.fixture
def stopped(interrupted: Path, tmp_path: Path) -> Path:
    """A run with whole checkpoints of steps 6 and 12, of 24."""
    return Path(shutil.copytree(interrupted, tmp_path / "run"))


class Whole(NamedTuple):
    """The run that nothing disturbed."""

    model: Any
    log: bytes


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    run = tmp_path_factory.mktemp("whole")
    return Whole(_train(run), (run / "log.jsonl").read_bytes())


def test_a_resumed_runs_warm_up_is_that_of_the_whole(stopped: Path, whole: Whole) -> None:
    """Its steps are counted from the start, not from where it resumes."""
    assert _same(_train(stopped), whole.model)
    log = [json.loads(line) for line in (stopped / "log.jsonl").read_text().splitlines()]
    rates = [entry["learning_rate"] for entry in log if "learning_rate" in entry]
    assert (stopped / "log.jsonl").read_bytes() == whole.log
    assert rates[0] == pytest.approx(2e-3 / 3)  # step 3 begins after two steps of three


def _same(a: Any, b: Any) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def test_twenty_kills_change_nothing(tmp_path: Path) -> None:
    """Fifteen at random moments, five inside a save; the weights, optimiser and log are equal."""
    command = [sys.executable, Path(__file__).with_name("kills.py"), tmp_path, "20"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["killed"] == {"moment": 15, "save": 5}
    assert result["equal"], result
    assert result["backwards"] == 0, "a kill cost an older checkpoint"
    assert result["lines"] == 30 + 15  # logs and evaluations of 90 steps
    assert result["kept"] == ["checkpoint-84", "checkpoint-90", "log.jsonl"]
    assert result["points"] >= 15


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "trainer_state.json"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_a_damaged_newest_is_passed_over(
    stopped: Path, whole: Whole, name: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = stopped / "checkpoint-12" / name
    content = bytearray(file.read_bytes())
    if damage == "truncated":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    else:
        file.unlink()
    with caplog.at_level(logging.WARNING, "trimtab_models"):
        resumed = _train(stopped)
    assert f"checkpoint-12/{name}" in caplog.text
    assert "is used instead" in caplog.text
    assert _same(resumed, whole.model)
    assert (stopped / "log.jsonl").read_bytes() == whole.log


def test_with_no_whole_checkpoint_nothing_is_touched(stopped: Path) -> None:
    for checkpoint in saves.checkpoints(stopped):
        (checkpoint / manifest.NAME).unlink()
    before = sorted(stopped.rglob("*"))
    with pytest.raises(ValueError, match=r"no checkpoint in .* is intact"):
        _train(stopped)
    assert sorted(stopped.rglob("*")) == before


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"label": 2.0}, "changed since: the data"),
        ({"batch_size": 8}, r"per_device_train_batch_size \(4 then, 8 now\)"),
        ({"epochs": 4}, r"num_train_epochs \(3 then, 4 now\)"),
        ({"seed": 1}, r"seed \(0 then, 1 now\)"),
        ({"fingerprint": {"objective": "another"}}, r"objective \(None then, 'another' now\)"),
    ],
)
def test_another_run_is_refused(stopped: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        _train(stopped, **changes)
    manifest.verify(stopped / "checkpoint-6")
    manifest.verify(stopped / "checkpoint-12")


@pytest.mark.parametrize("where", ["optimizer", "manifest"])
def test_a_full_disk_costs_nothing(
    stopped: Path, whole: Whole, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if where == "optimizer":
            patch.setattr(torch, "save", full)
        else:
            patch.setattr(manifest, "write_manifest", full)
        with pytest.raises(saves.SaveFailed, match=r"step 18 .*No space left.*same command"):
            _train(stopped)
    assert {path.name for path in stopped.iterdir()} == {
        "checkpoint-6",
        "checkpoint-12",
        "log.jsonl",
    }
    manifest.verify(stopped / "checkpoint-12")
    assert _same(_train(stopped), whole.model)


def test_the_last_two_are_kept_and_an_ended_run_does_not_train_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = _train(tmp_path / "run")
    kept = [path.name for path in saves.checkpoints(tmp_path / "run")]
    assert kept == ["checkpoint-18", "checkpoint-24"]
    monkeypatch.setattr(saves.SafeTrainer, "train", None)
    assert _same(_train(tmp_path / "run"), trained)


def test_a_log_must_end_where_a_save_does(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"save_steps \(7\) must be a multiple"):
        _train(tmp_path, save_steps=7)


def test_a_manifest_names_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "work" / "deep").mkdir(parents=True)
    (tmp_path / "work" / "deep" / "file").write_text("one")
    manifest.put_in_place(tmp_path / "work", tmp_path / "target")
    manifest.verify(tmp_path / "target")
    assert not (tmp_path / "work").exists()
    (tmp_path / "target" / "deep" / "file").write_text("two")
    with pytest.raises(manifest.BrokenCheckpoint, match=r"deep/file is damaged"):
        manifest.verify(tmp_path / "target")
    (tmp_path / "target" / manifest.NAME).write_text("{")
    with pytest.raises(manifest.BrokenCheckpoint, match="not JSON"):
        manifest.verify(tmp_path / "target")


def test_publishing_over_an_older_one(tmp_path: Path) -> None:
    for text in ("old", "new"):
        (tmp_path / "work").mkdir()
        (tmp_path / "work" / "file").write_text(text)
        manifest.put_in_place(tmp_path / "work", tmp_path / "target")
    assert (tmp_path / "target" / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def _made_run(run: Path) -> None:
    """Two checkpoints of next to nothing."""
    for step in (6, 12):
        work = run / f".checkpoint-{step}.part"
        work.mkdir(parents=True)
        (work / saves.FINGERPRINT).write_text('{"seed": 0}')
        (work / "weights").write_bytes(bytes([step]) * 8)
        manifest.put_in_place(work, run / f"checkpoint-{step}")


def test_every_flipped_bit_of_a_manifest_is_noticed(tmp_path: Path) -> None:
    _made_run(tmp_path)
    older, newest = saves.checkpoints(tmp_path)
    file = newest / manifest.NAME
    content, entries = file.read_bytes(), manifest.read(newest)
    assert saves.newest(tmp_path) == newest, "the control"
    refused = 0
    for at in range(len(content)):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[at] ^= 1 << bit
            file.write_bytes(damaged)
            result = saves.newest(tmp_path)
            assert result in (older, newest)
            # What is taken for whole names the same files with the same sums.
            assert result == older or manifest.read(newest) == entries
            refused += result == older
    assert refused > 0.99 * 8 * len(content)


@pytest.mark.parametrize(
    "text",
    [
        *("", "{}", "[]", "null", "3", '"x"', '{"weights": {}}', '{"weights": null}'),
        '{"weights": {"bytes": "8", "sha256": "0"}}',
        '{"../../secret": {"bytes": 8, "sha256": "%s"}}' % ("0" * 64),
        '{"/etc/passwd": {"bytes": 8, "sha256": "%s"}}' % ("0" * 64),
        '{"a\\u0000": {"bytes": 8, "sha256": "%s"}}' % ("0" * 64),
        "[" * 100_000,
    ],
)
def test_what_is_no_manifest_is_damaged(tmp_path: Path, text: str) -> None:
    _made_run(tmp_path)
    older, newest = saves.checkpoints(tmp_path)
    (newest / manifest.NAME).write_text(text)
    with pytest.raises(manifest.BrokenCheckpoint):
        manifest.verify(newest)
    assert saves.newest(tmp_path) == older
    (newest / manifest.NAME).unlink()
    (newest / manifest.NAME).mkdir()
    assert saves.newest(tmp_path) == older


def test_a_checkpoint_that_does_not_say_of_which_run_it_is_is_passed_over(tmp_path: Path) -> None:
    _made_run(tmp_path)
    older, newest = saves.checkpoints(tmp_path)
    (newest / saves.FINGERPRINT).unlink()
    manifest.write_manifest(newest)
    assert saves.newest(tmp_path) == older
    (newest / saves.FINGERPRINT).write_text("[]")
    manifest.write_manifest(newest)
    assert saves.newest(tmp_path) == older


def test_what_a_run_did_not_make_stays(stopped: Path, whole: Whole) -> None:
    others = ["checkpoint-best", "checkpoint-6.copy", ".checkpoint-mine"]
    for name in others:
        (stopped / name).mkdir()
        (stopped / name / "notes.txt").write_text("mine")
    (stopped / ".checkpoint-18.part").mkdir()  # ours, left by a kill
    assert _same(_train(stopped), whole.model)
    saves.clear(stopped)
    assert {path.name for path in stopped.iterdir()} == {*others, "log.jsonl"}
    for text in ("a diary\n", '{"day": 1}\n', "\xff", " "):
        (stopped / "log.jsonl").write_text(text, encoding="latin-1")
        with pytest.raises(OSError, match="not the log of a training"):
            _train(stopped)
        assert (stopped / "log.jsonl").read_text(encoding="latin-1") == text


@pytest.mark.parametrize("text", ["", '{"st', '{"step": 6, "loss": 0.1}\n{"step": 12, "lo'])
def test_a_log_that_was_cut_short_is_written_anew(stopped: Path, whole: Whole, text: str) -> None:
    (stopped / "log.jsonl").write_text(text)
    _train(stopped)
    assert (stopped / "log.jsonl").read_bytes() == whole.log
