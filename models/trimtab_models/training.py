"""Offline training of scorers on transformers' Trainer.

    python -m trimtab_models.training td-lambda --base BASE --data rollouts.jsonl --out SCORER

A run that was interrupted goes on from its last saved step when it is started again.
"""

import argparse
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import AutoTokenizer, PreTrainedModel, Trainer, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from trimtab_models import checkpoint, data
from trimtab_models.networks import scalar_head
from trimtab_models.objectives import OBJECTIVES, Objective
from trimtab_models.rows import Rollout, Rows, pad

Batch = Mapping[str, Tensor]


class _LossTrainer(Trainer):
    """A Trainer whose loss is a function of (model, batch)."""

    def __init__(self, loss: Callable[[Any, Batch], Tensor], **options: Any) -> None:
        super().__init__(**options)
        self.loss = loss
        # Our losses are means over a batch; Trainer is not to divide them once more.
        self.model_accepts_loss_kwargs = False

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, **_: Any
    ) -> Tensor:
        return self.loss(model, inputs)


class _Items(Dataset[Any]):
    def __init__(self, items: Sequence[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def fit(
    model: PreTrainedModel,
    items: Sequence[Any],
    collate: Callable[[Sequence[Any]], dict[str, Tensor]],
    loss: Callable[[Any, Batch], Tensor],
    work: str | Path,
    *,
    epochs: float,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> None:
    """Train in place with AdamW under a cosine schedule; resumes from what `work` holds.

    Args:
        model: trained in place and left in evaluation mode.
        items: anything `collate` turns into a batch.
        collate: items → a dict of tensors.
        loss: (model, batch) → scalar.
        work: a directory for the Trainer's own saves; removed once the run is through.
        epochs, batch_size, learning_rate, seed: as everywhere.
    """
    arguments = TrainingArguments(
        output_dir=str(work),
        num_train_epochs=epochs,
        per_device_train_batch_size=batch_size,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=50,
        weight_decay=0.01,
        seed=seed,
        logging_steps=50,
        save_steps=200,
        save_total_limit=1,
        report_to="none",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        use_cpu=not torch.cuda.is_available(),
    )
    trainer = _LossTrainer(
        loss, model=model, args=arguments, train_dataset=_Items(items), data_collator=collate
    )
    last = get_last_checkpoint(str(work)) if Path(work).is_dir() else None
    trainer.train(resume_from_checkpoint=last)
    shutil.rmtree(work, ignore_errors=True)
    model.eval()


def train(
    objective: Objective,
    model: PreTrainedModel,
    items: Sequence[Any],
    work: str | Path,
    *,
    pad_id: int,
    epochs: float = 2,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> None:
    """Train a scalar-head scorer on an objective's items (rollouts or pairs), in place."""

    def loss(network: Any, batch: Batch) -> Tensor:
        rows = Rows(**batch)
        logits = network(input_ids=rows.input_ids, attention_mask=rows.attention_mask).logits
        return objective.loss(logits, rows)

    fit(
        model,
        items,
        lambda chosen: objective.collate(chosen, pad_id)._asdict(),
        loss,
        work,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
    )


@torch.inference_mode()
def prefix_scores(
    model: Any, rollouts: Sequence[Rollout], pad_id: int, batch_size: int = 64
) -> list[Tensor]:
    """The score of every prefix of every completion: one [tokens] float32 tensor a rollout."""
    scores: list[Tensor] = []
    for start in range(0, len(rollouts), batch_size):
        rows = pad(rollouts[start : start + batch_size], pad_id)
        rows = Rows(*(part.to(model.device) for part in rows))
        logits = model(input_ids=rows.input_ids, attention_mask=rows.attention_mask).logits
        gathered = rows.gather(logits.squeeze(-1)).float().cpu()
        scores += [row[:n] for row, n in zip(gathered, rows.completions.tolist(), strict=True)]
    return scores


def describe(
    objective: Objective, model: Any, rollouts: Sequence[Rollout], pad_id: int, base_model: str
) -> checkpoint.ScorerInfo:
    """What to store with a trained scorer; mean and deviation are those of its prefixes' scores."""
    scores = torch.cat(prefix_scores(model, rollouts, pad_id))
    return checkpoint.ScorerInfo(
        objective=objective.name,
        base_model=base_model,
        mean=float(scores.mean()),
        deviation=max(float(scores.std()), 1e-6),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m trimtab_models.training", description="Train a scorer on rollouts or pairs."
    )
    parser.add_argument("objective", choices=OBJECTIVES)
    parser.add_argument("--base", required=True, help="the language model to be guided")
    parser.add_argument("--scorer", help="the network to begin with; the base itself if not given")
    parser.add_argument("--data", required=True, help="JSON Lines: rollouts, or preference pairs")
    parser.add_argument("--out", required=True, type=Path, help="directory of the new checkpoint")
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    set_seed(options.seed)
    tokenizer = AutoTokenizer.from_pretrained(options.base)
    objective = OBJECTIVES[options.objective]()
    model = scalar_head(options.scorer or options.base)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    records = data.read(options.data)
    items: list[Any]
    if objective.data == "pairs":
        items = data.pairs(records, tokenizer)
        seen = [Rollout(p.prompt, side, 0.0) for p in items for side in (p.chosen, p.rejected)]
    else:
        items = seen = data.rollouts(records, tokenizer)
    train(
        objective,
        model,
        items,
        options.out.with_name(f".{options.out.name}.run"),
        pad_id=pad_id,
        epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        seed=options.seed,
    )
    info = describe(objective, model, seen[:1000], pad_id, options.base)
    checkpoint.save(model, tokenizer, info, options.out)


if __name__ == "__main__":
    main()
