"""DPO, which trains a log-ratio scorer: TRL's trainer on our pairs, with our saves.

    L = − log σ( b·log π(y_w | x)/π_ref(y_w | x) − b·log π(y_l | x)/π_ref(y_l | x) )

The implicit reward of such a model is b·log π/π_ref, also for every prefix; it is served as a
log-ratio scorer with α = b and the initial model as its reference. Source: Rafailov et al., "Direct
Preference Optimization", eq. 7; for prefixes, Rafailov et al., "From r to Q*".
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from trimtab_models.rows import Pair
from trimtab_models.training.saves import SafeTrainer
from trimtab_models.training.trainer import callbacks, marks, settings


class SafeDPOTrainer(SafeTrainer, DPOTrainer):
    """TRL's trainer on data that is already tokenised."""

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset


def fit(
    model: Any,
    reference: Any,
    tokenizer: Any,
    items: Sequence[Pair],
    work: str | Path,
    *,
    lora: Any = None,
    validation: Sequence[Pair] = (),
    early_stopping: int | None = None,
    fingerprint: Mapping[str, Any] | None = None,
    **fields: Any,
) -> SafeDPOTrainer:
    """Tune a language model in place; resumes and raises as `trainer.fit`.

    Args:
        model: a language model.
        reference: the reference model; None with LoRA, whose adapters are switched off for it.
        tokenizer: the model's.
        items: pairs.
        work: the run directory.
        lora: PEFT's configuration, to train adapters only.
        validation, early_stopping, fingerprint: as `trainer.fit`.
        fields: fields of TRL's DPOConfig (num_train_epochs, learning_rate, ...; beta is b).
    """
    arguments = settings(work, validate=bool(validation), early_stopping=early_stopping, **fields)
    trainer = SafeDPOTrainer(
        model=model,
        ref_model=reference,
        args=DPOConfig(
            **{"bf16": False, "gradient_checkpointing": False, "max_length": None, **arguments}
        ),
        train_dataset=_dataset(items),
        eval_dataset=_dataset(validation) if validation else None,
        processing_class=tokenizer,
        callbacks=callbacks(early_stopping),
        peft_config=lora,
    )
    trainer.scales_warmup = "warmup_steps" not in arguments
    trainer.fingerprint = marks(arguments, items, validation) | dict(fingerprint or {})
    trainer.fit()
    return trainer


def _dataset(pairs: Sequence[Pair]) -> Dataset:
    return Dataset.from_dict(
        {
            "prompt_ids": [pair.prompt for pair in pairs],
            "chosen_ids": [pair.chosen for pair in pairs],
            "rejected_ids": [pair.rejected for pair in pairs],
        }
    )
