"""Checks of a training's output, `out` and its run directory, before the training starts."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trimtab_models import manifest, outputs
from trimtab_models.training import saves

log = logging.getLogger(__name__)

PLAIN = ("objective", "base", "scorer", "layers", "lora", "probe", "ensemble", "seed")
"""Settings that a checkpoint's fingerprint contains unchanged."""


def check(out: Path, made_by: Mapping[str, Any], **inputs: str | Path | None) -> None:
    """Make sure that a training overwrites only its own results.

    Args:
        out: directory of the result; absolute.
        made_by: settings of the training.
        inputs: the paths that it reads, by their names.

    Raises:
        InTheWay: `out` or its run directory has other content, or cannot be written.
        ValueError: an earlier run there had other settings.
    """
    run = saves.run_directory(out)
    outputs.is_result_of(out, made_by)
    outputs.check_inputs(out, inputs)
    outputs.check_inputs(run, inputs)
    outputs.check_free(out)
    if os.path.lexists(run) and not run.is_dir():
        raise outputs.InTheWay(f"{run} is not a directory, and checkpoints go there; move it away.")
    outputs.check_writable(run)
    for folder in (run, *run.glob("rate-*")):
        saves.check_log(folder)
        for checkpoint in saves.checkpoints(folder)[-1:]:
            _same(checkpoint, {name: made_by[name] for name in PLAIN if name in made_by})


def _same(checkpoint: Path, settings: Mapping[str, Any]) -> None:
    try:
        former = outputs.read(checkpoint / saves.FINGERPRINT, dict[str, Any])
    except (OSError, outputs.Damaged):
        return  # saves.newest skips it
    saves.refuse_changes(checkpoint, {**former, **settings})


def finished(out: Path, made_by: Mapping[str, Any]) -> bool:
    """Whether an earlier run has completed `out`, so that nothing remains to do.

    Raises:
        InTheWay: it was made with other settings or data.
        BrokenCheckpoint: it is damaged.
    """
    if not outputs.is_result_of(out, made_by):
        return False
    manifest.verify(out)
    log.warning("%s is finished; remove it, or choose another `out`, to train again.", out)
    saves.clear(saves.run_directory(out))
    return True
