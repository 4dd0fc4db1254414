"""Checkpoints that survive a kill: verified saves, exact resume, a reproducible log.

A run directory contains

    checkpoint-N/    weights, optimiser, schedule, random generators and Trainer state after step N,
                     the run's settings (fingerprint.json), and a manifest of all these files
    log.jsonl        one line for each log and each evaluation; no times, so that two equal runs
                     have equal logs

A checkpoint is renamed into place once all its bytes are on the disk; only then older ones are
removed, except the last two. A resumed run takes the newest checkpoint that matches its manifest,
rewrites the log from the history stored in it, and reaches the same bits as an uninterrupted run
(with the same number of threads).
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.trainer_callback import TrainerState

from trimtab_models import manifest, outputs
from trimtab_models.manifest import BrokenCheckpoint, put_in_place, verify
from trimtab_models.training.schedule import FittedTrainer

log = logging.getLogger(__name__)

KEPT = 2
LOG = "log.jsonl"
FINGERPRINT = "fingerprint.json"
"""The file of a run's settings, as plain JSON values."""
_STATE = "trainer_state.json"
_LONGEST = 2**16  # maximum bytes of a line of the log
_NUMBERED = re.compile(r"checkpoint-\d+")
_LEFT = re.compile(rf"\.{_NUMBERED.pattern}\.(part|old)")
_CLOCK = ("_runtime", "_per_second", "_time", "num_tokens")


class SaveFailed(OSError):
    """A checkpoint could not be written; older ones are unchanged."""


@contextmanager
def saving(what: str) -> Iterator[None]:
    """Turn any error in the block that writes `what` into a SaveFailed.

    Raises:
        SaveFailed: the block failed; the message says why, and what to do.
    """
    try:
        yield
    except Exception as error:
        raise SaveFailed(
            f"{what} could not be written: {error}. Earlier checkpoints are intact: free some "
            "space if the disk is full, and run the same command again to resume from the newest."
        ) from error


@contextmanager
def placing(target: Path, what: str | None = None) -> Iterator[Path]:
    """A new directory that replaces `target` at the end of the block; see manifest.put_in_place.

    Raises:
        SaveFailed: it could not be written; an older `target` is unchanged.
    """
    with saving(what or str(target)), manifest.placing(target) as part:
        yield part


def digest(items: Iterable[Any]) -> str:
    """SHA-256 of training items: named tuples of token ids and numbers."""
    sha = hashlib.sha256()
    for item in items:
        sha.update(repr(item).encode())
    return sha.hexdigest()


def run_directory(out: Path) -> Path:
    """The directory of a run's checkpoints and log, beside the result."""
    return out.with_name(f"{out.name}.run")


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def checkpoints(run: Path) -> list[Path]:
    """A run's checkpoints, complete or not, the oldest first."""
    paths = run.glob("checkpoint-*")
    return sorted((path for path in paths if _NUMBERED.fullmatch(path.name)), key=_step)


def check_log(run: Path) -> None:
    """Make sure that a run directory has no log, or a log of ours, which may be overwritten.

    Raises:
        InTheWay: it has another file of that name.
    """
    path = run / LOG
    if not os.path.lexists(path):
        return
    if not path.is_file() or not _ours(path):
        raise outputs.InTheWay(f"{path} is not the log of a training; move it away.")


def _ours(path: Path) -> bool:
    with open(path, "rb") as file:
        line = file.readline(_LONGEST)
    if not line.endswith(b"\n"):  # a kill may have truncated it
        return line[:1] in (b"", b"{")
    try:
        return "step" in dict(json.loads(line))
    except (ValueError, TypeError, RecursionError):
        return False


def newest(run: Path) -> Path | None:
    """The newest checkpoint that matches its manifest; None if there are no checkpoints.

    Raises:
        ValueError: all checkpoints are damaged. Nothing is removed.
    """
    candidates = checkpoints(run)
    for checkpoint in reversed(candidates):
        try:
            verify(checkpoint)
            outputs.read(checkpoint / FINGERPRINT, dict[str, Any])
        except (BrokenCheckpoint, outputs.Damaged, FileNotFoundError) as error:
            log.warning("%s The checkpoint before it is used instead.", error)
        else:
            return checkpoint
    if candidates:
        raise ValueError(
            f"no checkpoint in {run} is intact. Nothing was deleted: restore a copy of one, or "
            "remove the directory (or choose another `out`) to start again."
        )
    return None


def refuse_changes(checkpoint: Path, fingerprint: Mapping[str, Any]) -> None:
    """Compare a run's present settings with those of its checkpoint.

    Raises:
        ValueError: they differ; the message names the differences.
    """
    old = outputs.read(checkpoint / FINGERPRINT, dict[str, Any])
    if changed := outputs.changes(old, fingerprint):
        raise ValueError(
            f"{checkpoint} belongs to another run; changed since: {changed}. Undo the change to "
            f"resume, or remove {checkpoint.parent} (or choose another `out`) to start again."
        )


def clear(run: str | Path) -> None:
    """Remove a run's checkpoints, after its result is saved; its log stays."""
    for folder in (Path(run), *Path(run).glob("rate-*")):
        for checkpoint in checkpoints(folder):
            shutil.rmtree(checkpoint)


class SafeTrainer(FittedTrainer):
    """transformers' Trainer with this module's saves; also a mixin for TRL's trainers.

    fingerprint: settings that must be the same when the run is resumed, as plain JSON values.
    """

    fingerprint: Mapping[str, Any] = {}
    _saving: Path | None = None

    @property
    def run(self) -> Path:
        """The run directory."""
        return Path(self.args.output_dir)

    def fit(self) -> None:
        """Train to the end, from the newest intact checkpoint if there is one."""
        self.fingerprint = {**self.fingerprint, "processes": self.args.world_size}
        last = newest(self.run)
        state = TrainerState()
        if last is not None:
            refuse_changes(last, self.fingerprint)
            state = TrainerState.load_from_json(str(last / _STATE))
        if self.is_world_process_zero():
            check_log(self.run)
            self.run.mkdir(parents=True, exist_ok=True)
            for left in self.run.glob(".checkpoint-*"):
                if _LEFT.fullmatch(left.name):
                    shutil.rmtree(left)
            lines = "".join(map(_line, state.log_history))
            outputs.put(self.run / LOG, lines)
        if last is not None and _finished(state):
            self.state = state
            chosen = Path(state.best_model_checkpoint or last)
            verify(chosen)
            self._load_from_checkpoint(str(chosen))
        else:
            self.train(resume_from_checkpoint=last and str(last))
        self.model.eval()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as Trainer does, and into the run's log."""
        super().log(logs, start_time)
        if self.is_world_process_zero():
            with open(self.run / LOG, "a", encoding="utf-8") as file:
                file.write(_line(self.state.log_history[-1]))

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._saving or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # Trainer writes checkpoint-N into its output directory, which is a private one meanwhile.
        target = self.run / f"checkpoint-{self.state.global_step}"
        self._saving = self.run / f".{target.name}.part"
        try:
            with saving(f"the checkpoint of step {self.state.global_step} in {self.run}"):
                super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()
                if self.is_world_process_zero():
                    self._complete(self._saving / target.name, target)
        finally:
            if self.is_world_process_zero():
                shutil.rmtree(self._saving, ignore_errors=True)
            self._saving = None
            self.accelerator.wait_for_everyone()

    def _complete(self, work: Path, target: Path) -> None:
        best = None
        if self.state.best_global_step and self.args.load_best_model_at_end:
            best = self.run / f"checkpoint-{self.state.best_global_step}"
            self.state.best_model_checkpoint = str(best)
        self.state.save_to_json(str(work / _STATE))
        (work / FINGERPRINT).write_text(json.dumps(self.fingerprint, indent=1), encoding="utf-8")
        put_in_place(work, target)
        for old in checkpoints(self.run)[:-KEPT]:
            if old != best:
                shutil.rmtree(old)


def _finished(state: TrainerState) -> bool:
    control: Any = state.stateful_callbacks.get("TrainerControl", {})
    return bool(control.get("args", {}).get("should_training_stop", False))


def _line(entry: Mapping[str, Any]) -> str:
    if "train_runtime" in entry:  # the final summary is of this process, not of the run
        return ""
    kept = {key: entry[key] for key in sorted(entry) if not key.endswith(_CLOCK)}
    return json.dumps({"step": kept.pop("step"), **kept}) + "\n"
