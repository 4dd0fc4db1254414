"""Work that a kill cannot cost: verified saves, exact resume, a log that tells the same story.

A run directory holds

    checkpoint-N/    weights, optimiser, schedule, random generators and Trainer state after step N,
                     what the run was started with (fingerprint.json), and a manifest over all of it
    log.jsonl        one line for each log and each evaluation; no times, so that two equal runs
                     have equal logs

A checkpoint appears by a rename once every byte of it is on the disk; the one before the last is
removed only then. A resumed run takes the newest checkpoint that fits its manifest, writes the log
anew from the history stored in it, and goes on to the same bits as a run that nothing interrupted
(at the same number of threads).
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

from transformers import Trainer
from transformers.trainer_callback import TrainerState

from trimtab_models import manifest, outputs
from trimtab_models.manifest import BrokenCheckpoint, publish, verify

logger = logging.getLogger(__name__)

KEPT = 2
LOG = "log.jsonl"
FINGERPRINT = "fingerprint.json"
"""What a run was started with, as plain JSON values."""
_STATE = "trainer_state.json"
_LONGEST = 2**16  # bytes of a line of the log
_NUMBERED = re.compile(r"checkpoint-\d+")
_LEFT = re.compile(rf"\.{_NUMBERED.pattern}\.(part|old)")
_CLOCK = ("_runtime", "_per_second", "_time", "num_tokens")


class SaveFailed(OSError):
    """A checkpoint could not be written; older ones are as they were."""


@contextmanager
def saving(what: str) -> Iterator[None]:
    """Around the writing of `what`.

    Raises:
        SaveFailed: something went wrong; says what, and what to do.
    """
    try:
        yield
    except Exception as error:
        raise SaveFailed(
            f"{what} could not be written: {error}. Checkpoints before it are intact: free some "
            "space if the disk is full, and give the same command again to go on from the newest."
        ) from error


@contextmanager
def placing(target: Path, what: str | None = None) -> Iterator[Path]:
    """A new directory that takes the place of `target` once it was filled; see manifest.publish.

    Raises:
        SaveFailed: it could not be written; an older `target` is as it was.
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
    """Where a run keeps its checkpoints and its log: beside the result."""
    return out.with_name(f"{out.name}.run")


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def checkpoints(run: Path) -> list[Path]:
    """A run's checkpoints, the oldest first, whole or not."""
    found = run.glob("checkpoint-*")
    return sorted((path for path in found if _NUMBERED.fullmatch(path.name)), key=_step)


def check_log(run: Path) -> None:
    """Make sure that a run directory has no log, or one of ours, which may be written anew.

    Raises:
        InTheWay: it has another.
    """
    log = run / LOG
    if not os.path.lexists(log):
        return
    if not log.is_file() or not _ours(log):
        raise outputs.InTheWay(f"{log} is not the log of a training, which goes there; move it.")


def _ours(log: Path) -> bool:
    with open(log, "rb") as file:
        line = file.readline(_LONGEST)
    if not line.endswith(b"\n"):  # a kill may have cut it short
        return line[:1] in (b"", b"{")
    try:
        return "step" in dict(json.loads(line))
    except (ValueError, TypeError, RecursionError):
        return False


def newest(run: Path) -> Path | None:
    """The newest checkpoint that fits its manifest; None if there is not one of any kind.

    Raises:
        ValueError: there are checkpoints, and all are damaged. Nothing is removed.
    """
    found = checkpoints(run)
    for checkpoint in reversed(found):
        try:
            verify(checkpoint)
            outputs.read(checkpoint / FINGERPRINT, dict[str, Any])
        except (BrokenCheckpoint, outputs.Damaged, FileNotFoundError) as error:
            logger.warning("%s It is passed over for the checkpoint before it.", error)
        else:
            return checkpoint
    if found:
        raise ValueError(
            f"no checkpoint in {run} is whole. Nothing was deleted: put back a copy of one, or "
            "remove the directory (or choose another `out`) to start anew."
        )
    return None


def refuse_changes(checkpoint: Path, fingerprint: Mapping[str, Any]) -> None:
    """Compare what a run was started with and what it is now.

    Raises:
        ValueError: they differ; the message names what does.
    """
    old = outputs.read(checkpoint / FINGERPRINT, dict[str, Any])
    if changed := outputs.changes(old, fingerprint):
        raise ValueError(
            f"{checkpoint} belongs to another run; changed since: {changed}. Put that "
            f"back to go on, or remove {checkpoint.parent} (or choose another `out`) to start anew."
        )


def clear(run: str | Path) -> None:
    """Remove a run's checkpoints, once what it made is safe elsewhere; its log stays."""
    for folder in (Path(run), *Path(run).glob("rate-*")):
        for checkpoint in checkpoints(folder):
            shutil.rmtree(checkpoint)


class SafeTrainer(Trainer):
    """transformers' Trainer with the promises of this module; also a mixin for TRL's trainers.

    fingerprint: what the run must be started with again to be resumed, as plain JSON values.
    """

    fingerprint: Mapping[str, Any] = {}
    _saving: Path | None = None

    @property
    def run(self) -> Path:
        """The run directory."""
        return Path(self.args.output_dir)

    def fit(self) -> None:
        """Train to the end, from the newest whole checkpoint if there is one."""
        self.fingerprint = {**self.fingerprint, "processes": self.args.world_size}
        found = newest(self.run)
        state = TrainerState()
        if found is not None:
            refuse_changes(found, self.fingerprint)
            state = TrainerState.load_from_json(str(found / _STATE))
        if self.is_world_process_zero():
            check_log(self.run)
            self.run.mkdir(parents=True, exist_ok=True)
            for left in self.run.glob(".checkpoint-*"):
                if _LEFT.fullmatch(left.name):
                    shutil.rmtree(left)
            lines = "".join(map(_line, state.log_history))
            (self.run / LOG).write_text(lines, encoding="utf-8")
        if found is not None and _finished(state):
            self.state = state
            chosen = Path(state.best_model_checkpoint or found)
            verify(chosen)
            self._load_from_checkpoint(str(chosen))
        else:
            self.train(resume_from_checkpoint=found and str(found))
        self.model.eval()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As Trainer, and into the run's own log."""
        super().log(logs, start_time)
        if self.is_world_process_zero():
            with open(self.run / LOG, "a", encoding="utf-8") as file:
                file.write(_line(self.state.log_history[-1]))

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._saving or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # Trainer writes checkpoint-N into its output directory: into a private one for that time.
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
        publish(work, target)
        for old in checkpoints(self.run)[:-KEPT]:
            if old != best:
                shutil.rmtree(old)


def _finished(state: TrainerState) -> bool:
    control: Any = state.stateful_callbacks.get("TrainerControl", {})
    return bool(control.get("args", {}).get("should_training_stop", False))


def _line(entry: Mapping[str, Any]) -> str:
    if "train_runtime" in entry:  # the summary at the end, of this process and not of the run
        return ""
    kept = {key: entry[key] for key in sorted(entry) if not key.endswith(_CLOCK)}
    return json.dumps({"step": kept.pop("step"), **kept}) + "\n"
