"""The training loop: an objective's loss on transformers' Trainer."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import EarlyStoppingCallback, TrainingArguments

from trimtab_models.checkpoint import Family, ScorerInfo
from trimtab_models.features import States
from trimtab_models.networks import Head, split
from trimtab_models.objectives import Objective
from trimtab_models.objectives.base import completions
from trimtab_models.rows import Rollout, Rows
from trimtab_models.scoring import prefix_scores
from trimtab_models.training import ensembles, probes
from trimtab_models.training.saves import SafeTrainer, digest
from trimtab_models.whitening import restore, whiten

Batch = Mapping[str, Tensor]

HEAD_FAMILIES: dict[Head, Family] = {
    "scalar": "head",
    "scalars": "head",
    "distribution": "distribution",
    "distributions": "distribution",
    "vocabulary": "vocabulary",
    "vocabulary+value": "vocabulary",
    "language": "log_ratio",
}


class LossTrainer(SafeTrainer):
    """A Trainer whose loss is a function of (model, batch), in training and in validation."""

    def __init__(self, loss: Callable[[Any, Batch], Tensor], **options: Any) -> None:
        super().__init__(**options)
        self.loss = loss
        # Our losses are means over a batch; Trainer must not divide them again.
        self.model_accepts_loss_kwargs = False

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, **_: Any
    ) -> Tensor:
        """The loss of a batch."""
        return self.loss(model, inputs)

    def prediction_step(self, model: Any, inputs: Batch, *_: Any, **__: Any) -> tuple[Any, ...]:
        """The same loss, without a gradient."""
        with torch.no_grad():
            return self.loss(model, self._prepare_inputs(inputs)).detach(), None, None


def fit(
    model: Any,
    items: Sequence[Any],
    collate: Callable[[Sequence[Any]], dict[str, Tensor]],
    loss: Callable[[Any, Batch], Tensor],
    work: str | Path,
    *,
    epochs: float,
    batch_size: int,
    learning_rate: float,
    seed: int,
    validation: Sequence[Any] = (),
    early_stopping: int | None = None,
    fingerprint: Mapping[str, Any] | None = None,
    **arguments: Any,
) -> LossTrainer:
    """Train in place with AdamW under a cosine schedule; resumes from the checkpoints in `work`.

    Without `warmup_steps` among the arguments, a tenth of the steps is warm-up, at most 50.

    Args:
        model: trained in place and left in evaluation mode.
        items: the input of `collate`.
        collate: items → a dict of tensors.
        loss: (model, batch) → scalar, a mean over the batch.
        work: the run directory (see saves.py); call `saves.clear` once the result is saved.
        epochs, batch_size, learning_rate, seed: as in TrainConfig.
        validation: items whose loss is logged as eval_loss at every `eval_steps`.
        early_stopping: evaluations without a lower loss before a stop; the best weights are kept.
        fingerprint: further settings that must not change when the run is resumed.
        arguments: further fields of TrainingArguments.

    Raises:
        ValueError: the run directory belongs to other data or settings, all its checkpoints are
            damaged, or early stopping has no evaluations to compare.
        SaveFailed: a checkpoint could not be written.
    """
    fields = settings(
        work,
        validate=bool(validation),
        early_stopping=early_stopping,
        num_train_epochs=epochs,
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        **arguments,
    )
    trainer = LossTrainer(
        loss,
        model=model,
        args=TrainingArguments(**fields),
        train_dataset=items,
        eval_dataset=validation or None,
        data_collator=collate,
        callbacks=callbacks(early_stopping),
    )
    trainer.scales_warmup = "warmup_steps" not in fields
    trainer.fingerprint = marks(fields, items, validation) | dict(fingerprint or {})
    trainer.fit()
    return trainer


def settings(
    work: str | Path, *, validate: bool, early_stopping: int | None, **overrides: Any
) -> dict[str, Any]:
    """Fields of TrainingArguments: our defaults, `overrides`, and the evaluation schedule.

    The warm-up has no default here, since it follows from the number of steps (see schedule.py).

    Raises:
        ValueError: the intervals of logs, evaluations and saves do not fit together.
    """
    ours: dict[str, Any] = {
        "output_dir": str(work),
        "lr_scheduler_type": "cosine",
        "weight_decay": 0.01,
        "logging_steps": 50,
        "save_steps": 200,
        "report_to": "none",
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        "ddp_find_unused_parameters": False,
        "use_cpu": not torch.cuda.is_available(),
        "restore_callback_states_from_checkpoint": True,
    }
    fields = ours | overrides
    # The order of the data must not depend on the number of processes.
    fields.setdefault("data_seed", fields["seed"])
    saves, logs = fields["save_steps"], fields["logging_steps"]
    evaluations = fields.pop("eval_steps", None) or saves
    if saves % logs:
        # The loss since the last log is not saved: a resumed run could not log it again.
        raise ValueError(f"save_steps ({saves}) must be a multiple of logging_steps ({logs}).")
    if early_stopping and not validate:
        raise ValueError("early_stopping needs validation data.")
    if early_stopping and saves % evaluations:
        raise ValueError(
            f"with early_stopping, save_steps ({saves}) must be a multiple of eval_steps "
            f"({evaluations})."
        )
    if validate:
        fields |= {"eval_strategy": "steps", "eval_steps": evaluations}
    if early_stopping:
        fields |= {"load_best_model_at_end": True, "metric_for_best_model": "loss"}
        fields["greater_is_better"] = False
    return fields


def callbacks(early_stopping: int | None) -> list[Any]:
    """The Trainer callbacks for these settings."""
    return [EarlyStoppingCallback(early_stopping)] if early_stopping else []


def marks(
    fields: Mapping[str, Any], items: Sequence[Any], validation: Sequence[Any]
) -> dict[str, Any]:
    """A run's fingerprint: its settings and the hash of its data."""
    kept = {key: fields[key] for key in fields if key not in ("output_dir", "report_to")}
    return kept | {"data": digest(items), "validation data": digest(validation)}


def reader(model: Any, pad_id: int) -> Callable[[Any, Rows], Tensor]:
    """A function that returns a network's output at every position.

    (network, rows) → [rows, length, width]

    The forward of a *ForSequenceClassification returns one position of each row; a hook on its head
    collects the others, so that wrappers around the network see a plain call.
    """
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    heads: list[Tensor] = []
    whole = not type(bare).__name__.endswith("ForSequenceClassification")
    if not whole:
        bare.config.pad_token_id = pad_id
        split(bare)[1].register_forward_hook(lambda *call: heads.append(call[-1]))

    def outputs(network: Any, rows: Rows) -> Tensor:
        heads.clear()
        logits = network(input_ids=rows.input_ids, attention_mask=rows.attention_mask).logits
        return logits if whole else heads[0]

    return outputs


def train(
    objective: Objective,
    model: Any,
    items: Sequence[Any],
    work: str | Path,
    *,
    pad_id: int,
    base: Any = None,
    states: States | None = None,
    ensemble: int | None = None,
    epochs: float = 2,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    seed: int = 0,
    **options: Any,
) -> LossTrainer:
    """Train a network of `networks.build`, or a probe, in place on items; see `fit`.

    Args:
        objective: its `data` is the kind of items, its `head` the kind of network.
        model, items, work, epochs, batch_size, learning_rate, seed, options: as `fit`.
        pad_id: any token; it is masked.
        base: the frozen language model, for an objective with `reads_base`.
        states: the states of the items' answers, for a probe, which is trained whitened.
        ensemble: number of the network's scalar heads, each trained on its own resample.
    """
    if objective.reads_base and base is None:
        raise ValueError(f"{objective.name} needs the base model's log-probabilities; pass `base`.")
    outputs = reader(model, pad_id) if states is None else probes.reader(objective.head, states)

    def collate(chosen: Sequence[Any]) -> dict[str, Tensor]:
        batch = objective.collate(chosen, pad_id)._asdict()
        if states is not None:
            batch["states"] = states.batch([side for item in chosen for side in completions(item)])
        if ensemble is not None:
            prompts = [completions(item)[0].prompt for item in chosen]
            batch["counts"] = ensembles.counts(prompts, ensemble, seed)
        return batch

    def loss(network: Any, batch: Batch) -> Tensor:
        fields = dict(batch)
        read = [fields.pop("states")] if states is not None else []
        counts = fields.pop("counts", None)
        rows = Rows(**fields)
        log_pi0 = _log_pi0(base, rows) if objective.reads_base else None
        values = outputs(network, rows, *read)
        if counts is None:
            return objective.loss(values, rows, log_pi0)
        if not network.training:  # in validation each head sees everything
            counts = torch.ones_like(counts)
        return ensembles.loss(objective, values, rows, counts, log_pi0)

    if states is not None:
        whiten(model.tokens, states.embedding())
    trainer = fit(
        model,
        items,
        collate,
        loss,
        work,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        **options,
    )
    if states is not None:
        restore(model.tokens)
    return trainer


@torch.no_grad()
def _log_pi0(base: Any, rows: Rows) -> Tensor:
    base.to(rows.input_ids.device)
    logits = base(input_ids=rows.input_ids, attention_mask=rows.attention_mask).logits
    return logits.float().log_softmax(-1)


def describe(
    objective: Objective,
    model: Any,
    rollouts: Sequence[Rollout],
    pad_id: int,
    base_model: str,
    states: States | None = None,
    heads: int = 1,
) -> ScorerInfo:
    """The ScorerInfo of a trained scorer, with the statistics of its scores over the rollouts.

    states: of the base, if the scorer is a probe. heads: of an ensemble.
    """
    info = info_of(objective, base_model, states, heads)
    return deviations(info, model, rollouts, pad_id, states=states)


def info_of(
    objective: Objective, base_model: str, states: States | None = None, heads: int = 1
) -> ScorerInfo:
    """As `describe`, without the statistics."""
    return ScorerInfo(
        **{
            "family": "probe" if states else HEAD_FAMILIES[objective.head],
            "objective": objective.name,
            "base_model": base_model,
            "heads": heads,
            **objective.info(),
        }
    )


def deviations(
    info: ScorerInfo,
    model: Any,
    rollouts: Sequence[Rollout],
    pad_id: int,
    reference: Any = None,
    states: States | None = None,
) -> ScorerInfo:
    """A copy of `info` with the mean and deviation of the scores of all prefixes of the rollouts.

    Where scores add up along a text, as a log-ratio's do, they are those of single tokens.
    """
    scores = prefix_scores(model, info, rollouts, pad_id, reference=reference, states=states)
    if info.family == "log_ratio" or info.adds_up:
        scores = [torch.diff(row, prepend=row.new_zeros(1)) for row in scores]
    values = torch.cat(scores)
    return info.model_copy(
        update={"mean": float(values.mean()), "deviation": max(float(values.std()), 1e-6)}
    )
