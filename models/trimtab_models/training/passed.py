"""Settings that a configuration passes through to transformers."""

import dataclasses
from collections.abc import Collection
from typing import Any

from transformers import TrainingArguments

from trimtab_models.training.config import nearest

OWN = {
    "output_dir": "out",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "per_device_eval_batch_size": "batch_size",
    "report_to": "tensorboard",
    "eval_strategy": "validation",
    "load_best_model_at_end": "early_stopping",
    "metric_for_best_model": "early_stopping",
    "greater_is_better": "early_stopping",
}
"""Fields of TrainingArguments that have another name in a configuration."""
UNREAD = {"do_train", "do_eval", "do_predict", "resume_from_checkpoint", "label_smoothing_factor"}
"""Those that nothing here reads: scripts and losses of transformers do."""


def passed(fields: dict[str, Any], ours: Collection[str]) -> dict[str, Any]:
    """The fields of a configuration's `trainer`, checked; ours: those that the run sets itself.

    Raises:
        ValueError: there is no such field, nothing reads it, or it has another name.
    """
    known = {field.name for field in dataclasses.fields(TrainingArguments)}
    for name in fields:
        if name in OWN or name in ours:
            raise ValueError(f"trainer.{name}: set `{OWN.get(name, name)}` instead.")
        if name in UNREAD:
            raise ValueError(f"trainer.{name}: nothing reads it here; leave it out.")
        if name not in known:
            raise ValueError(
                f"trainer.{name}: TrainingArguments has no such field{nearest(name, known)}"
            )
    return fields
