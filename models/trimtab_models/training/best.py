"""One training, or the best of several learning rates."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from transformers import set_seed

from trimtab_models import data, networks, report
from trimtab_models.bases import base_name
from trimtab_models.features import States
from trimtab_models.objectives import Objective
from trimtab_models.objectives.fudge import Fudge
from trimtab_models.report import Rates
from trimtab_models.rows import Rollout
from trimtab_models.texts import Texts
from trimtab_models.training import initial, output_checks, probes, texts
from trimtab_models.training.config import TrainConfig
from trimtab_models.training.passed import passed
from trimtab_models.training.saves import SafeTrainer, run_directory
from trimtab_models.training.trainer import info_of, train

log = logging.getLogger(__name__)

REPORTED = 20_000  # prefixes of the report of a scorer of texts, which forwards each of them


def best(
    config: TrainConfig,
    loss: Objective | None,
    tokenizer: Any,
    items: Sequence[Any],
    validation: Sequence[Any],
    held_out: Sequence[Any],
    states: States | None,
    read: Texts | None,
) -> tuple[SafeTrainer, Rates | None]:
    """Train; with several learning rates, the trainer of the best one, and how it was chosen.

    validation: rows of `held_out`, the answers.
    """
    work = run_directory(config.out)

    def trained(rate: float, work: Path) -> SafeTrainer:
        return _train(config, loss, tokenizer, items, validation, states, read, rate, work)

    if not isinstance(config.learning_rate, list):
        return trained(config.learning_rate, work), None
    if not validation:
        raise ValueError("learning_rate: a list needs `validation` to choose from it.")
    by, judge = _judge(config, loss, tokenizer, held_out, states, read)
    figures = {}
    for rate in config.learning_rate:
        trainer = trained(rate, work / f"rate-{rate:g}")
        set_seed(config.seed)
        figures[rate] = judge(trainer)
        log.warning("learning rate %g: %s %.4f", rate, by, figures[rate])
    rates = Rates.best(by, figures)
    # A finished run does not train again: it loads its result.
    return trained(rates.chosen, work / f"rate-{rates.chosen:g}"), rates


def _judge(
    config: TrainConfig,
    loss: Objective | None,
    tokenizer: Any,
    held_out: Sequence[Any],
    states: States | None,
    read: Texts | None,
) -> tuple[report.By, Callable[[SafeTrainer], float]]:
    """What learning rates are compared by, and the figure of a trained scorer; see report.rates."""
    if loss is None:
        return "margin", lambda trainer: trainer.evaluate()["eval_rewards/margins"]

    def of_network(
        measure: Callable[..., float], prefixes: Sequence[Rollout]
    ) -> Callable[[SafeTrainer], float]:
        def judge(trainer: SafeTrainer) -> float:
            # The trainer's own network is made ready to be written.
            model, figure = whole(trainer, config, loss, states), [0.0]
            if trainer.is_world_process_zero():  # others may not have the whole network
                base, pad_id = base_name(config.base), pad_of(tokenizer)
                info = info_of(loss, base, states, config.ensemble or 1)
                info = texts.info_of(loss, read, base) if read else info
                figure = [measure(model, info, prefixes, pad_id, states=states, texts=read)]
            if distributed.is_initialized():
                distributed.broadcast_object_list(figure, src=0)
            return figure[0]

        return judge

    if config.completions and loss.info()["is_value"]:
        halves, _ = report.half_completed(data.read(config.completions), len(tokenizer))
        if halves:
            return "value MSE", of_network(report.value_mse, halves)
    if isinstance(loss, Fudge):
        some = texts.some(held_out, REPORTED) if read is not None else held_out
        return "accuracy", of_network(report.accuracy, loss.attributed(some))
    return "validation loss", lambda trainer: trainer.evaluate()["eval_loss"]


def _train(
    config: TrainConfig,
    loss: Objective | None,
    tokenizer: Any,
    items: Sequence[Any],
    validation: Sequence[Any],
    states: States | None,
    read: Texts | None,
    rate: float,
    work: Path,
) -> SafeTrainer:
    set_seed(config.seed)
    shared: dict[str, Any] = {
        "validation": validation,
        "early_stopping": config.early_stopping,
        "fingerprint": config.model_dump(include=set(output_checks.PLAIN) - {"seed"}),
        "learning_rate": rate,
        "seed": config.seed,
        "bf16": config.bf16,
        "gradient_checkpointing": config.gradient_checkpointing,
        "logging_steps": config.logging_steps,
        "save_steps": config.save_steps,
        "eval_steps": config.eval_steps or config.save_steps,
        "report_to": "tensorboard" if config.tensorboard else "none",
    }
    if states is not None:
        shared |= probes.DEFAULTS
        shared["fingerprint"]["weights of the base"] = states.fingerprint
        shared["fingerprint"]["projection of tokens"] = "whitened"
    shared |= passed(config.trainer, shared.keys() - probes.DEFAULTS.keys())
    shared["fingerprint"]["options"] = config.options
    if loss is None:
        from trimtab_models.training import dpo

        model = initial.language_model(config)
        lora = initial.lora_config(model, config)
        return dpo.fit(
            model,
            None if lora else initial.language_model(config),
            tokenizer,
            items,
            work,
            lora=lora,
            num_train_epochs=config.epochs,
            per_device_train_batch_size=config.batch_size,
            per_device_eval_batch_size=config.batch_size,
            **shared,
            **config.options,
        )
    if read is not None:
        shared["fingerprint"]["reads"] = read.reads
        return texts.train(
            loss,
            initial.network(config, loss),
            items,
            work,
            texts=read,
            epochs=config.epochs,
            batch_size=config.batch_size,
            **shared,
        )
    return train(
        loss,
        initial.network(config, loss),
        items,
        work,
        pad_id=pad_of(tokenizer),
        base=_frozen(config) if loss.reads_base else None,
        states=states,
        epochs=config.epochs,
        batch_size=config.batch_size,
        ensemble=config.ensemble,
        **shared,
    )


def _frozen(config: TrainConfig) -> Any:
    """The frozen base, for log π0."""
    half = config.bf16 and torch.cuda.is_available()
    dtype = torch.bfloat16 if half else torch.float32
    return networks.build("language", initial.base_path(config), dtype=dtype).requires_grad_(False)


def whole(
    trainer: SafeTrainer, config: TrainConfig, loss: Objective | None, states: States | None
) -> Any:
    """The whole trained network on the main process, ready to be written."""
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        model = initial.network(config, loss) if loss else initial.language_model(config)
        if trainer.is_world_process_zero():
            model.load_state_dict(weights)
    else:
        model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    return initial.finish(model, loss, config.lora, states)


def pad_of(tokenizer: Any) -> int:
    """The token that pads its texts, 0 without one."""
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
