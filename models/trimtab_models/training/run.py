"""From data to a checkpoint: the steps of one `trimtab train`, in order."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trimtab_models import checkpoint, data, networks, outputs, pretrained, report
from trimtab_models.bases import base_name
from trimtab_models.checkpoint import ScorerInfo
from trimtab_models.features import States
from trimtab_models.objectives import Objective
from trimtab_models.objectives.base import completions
from trimtab_models.report import Rates
from trimtab_models.rows import Rollout
from trimtab_models.texts import Texts
from trimtab_models.training import initial, output_checks, texts
from trimtab_models.training.best import REPORTED, best, pad_of, whole
from trimtab_models.training.config import DPO, TrainConfig
from trimtab_models.training.saves import clear, digest, run_directory, saving
from trimtab_models.training.trainer import describe, deviations

log = logging.getLogger(__name__)

INFO_COMPLETIONS = 1000  # completions whose prefixes give a scorer's mean and deviation


def run(config: TrainConfig) -> Path:
    """Train a scorer and write its checkpoint; resumes an interrupted call.

    A finished checkpoint of the same settings and data is left unchanged.

    Raises:
        InTheWay: (an OSError) the place of the checkpoint is not free. Nothing was done.
        ValueError: the settings or data are invalid, or differ from those of an earlier run there.
        OSError: something cannot be read or written.
    """
    config = initial.with_probe(config)
    config = config.model_copy(update={"out": outputs.place(config.out)})
    apart = {"out", "data", "validation", "aspect", "tensorboard"}  # data: by its digest below
    made_by = config.model_dump(mode="json", exclude=apart)
    validation_path = config.validation if isinstance(config.validation, str) else None
    output_checks.check(
        config.out,
        made_by,
        data=config.data,
        validation=validation_path,
        completions=config.completions,
        base=initial.base_path(config),
        scorer=config.scorer,
    )
    loss = None if config.objective == DPO else initial.objective(config)
    tokenizer = pretrained.tokenizer(initial.base_path(config))
    read = texts.texts_of(config, loss, tokenizer)
    if read is None:
        initial.refuse_small(config, tokenizer)
    items, validation = _items(config, loss.data if loss else "pairs", tokenizer, read)
    made_by |= {"data": digest(items), "validation data": digest(validation)}
    if output_checks.finished(config.out, made_by):
        return config.out
    if loss is not None:
        config = initial.with_support(config, [*items, *validation])
        loss = initial.objective(config)
    states = _states(config, [*items, *validation])
    drawn = _drawn(config, loss, items, read), _drawn(config, loss, validation, read)
    trainer, rates = best(config, loss, tokenizer, *drawn, validation, states, read)
    model = whole(trainer, config, loss, states)
    if trainer.is_world_process_zero():
        seen = [side for item in validation or items for side in completions(item)]
        if read is not None and loss is not None:
            some = drawn[1] or drawn[0]
            info = texts.describe(loss, model, read, some, base_name(config.base))
        else:
            info = _info(config, loss, model, seen[:INFO_COMPLETIONS], pad_of(tokenizer), states)
        if loss is not None and loss.to_go and _stepwise(items):
            info = info.model_copy(update={"to_go": True})
        result = None
        if validation:
            result = _report(config, model, info, validation, pad_of(tokenizer), states, read)
            result = result and result.model_copy(update={"rates": rates})

        def extras(work: Path) -> None:
            outputs.mark(work, made_by)
            if result:
                report.write(work, result)

        with saving(str(config.out)):
            checkpoint.save(
                model,
                _own_tokenizer(config) if read else tokenizer,
                report.mark(info, result) if result else info,
                config.out,
                text=_card(config, items, validation, rates, read),
                extras=extras,
            )
        clear(run_directory(config.out))
        if result and (sentence := report.warning(result)):
            log.warning("%s", sentence)
    trainer.accelerator.wait_for_everyone()
    return config.out


def _items(
    config: TrainConfig, kind: str, tokenizer: Any, read: Texts | None
) -> tuple[list[Any], list[Any]]:
    limits = config.max_length, initial.reads(config, texts=read is not None)
    items = data.load(config.data, kind, tokenizer, *limits, config.aspect)
    if isinstance(config.validation, str):
        return items, data.load(config.validation, kind, tokenizer, *limits, config.aspect)
    if config.validation is not None:
        return data.split(items, config.validation, config.seed)
    return items, []


def _stepwise(items: Sequence[Any]) -> bool:
    """Whether a reward arrives before the end of an answer."""
    return any(any(side.step_rewards) for item in items for side in completions(item))


def _drawn(
    config: TrainConfig, loss: Objective | None, items: Sequence[Any], read: Texts | None
) -> Sequence[Any]:
    """The rows of a scorer that reads texts; for others, the items themselves."""
    if read is None or loss is None:
        return items
    return texts.draw(loss, items, texts.rows_of(config, loss), config.seed)


def _own_tokenizer(config: TrainConfig) -> Any:
    """The tokenizer of a scorer that reads texts, as it was before it cut any."""
    try:
        return pretrained.tokenizer(config.scorer or config.base)
    except FileNotFoundError:
        return pretrained.tokenizer(initial.base_path(config))


def _states(config: TrainConfig, items: Sequence[Any]) -> States | None:
    """The base's states of all answers, for a probe."""
    if config.probe is None:
        return None
    states = States(initial.base_path(config), progress=True)
    states.add([side for item in items for side in completions(item)])
    return states


def _info(
    config: TrainConfig,
    loss: Objective | None,
    model: Any,
    seen: Sequence[Rollout],
    pad_id: int,
    states: States | None,
) -> ScorerInfo:
    base = base_name(config.base)
    if loss is not None:
        return describe(loss, model, seen, pad_id, base, states, config.ensemble or 1)
    reference = config.scorer or initial.base_path(config)
    if Path(reference).is_dir():  # absolute, for a server in any working directory
        reference = str(Path(reference).resolve())
    info = ScorerInfo(
        family="log_ratio",
        objective="DPO",
        base_model=base,
        alpha=config.options.get("beta", 0.1),
        reference=reference,
    )
    return deviations(info, model, seen, pad_id, reference=initial.language_model(config))


def _report(
    config: TrainConfig,
    model: Any,
    info: ScorerInfo,
    validation: Sequence[Any],
    pad_id: int,
    states: States | None,
    read: Texts | None,
) -> report.Report | None:
    """The validation report; None if validation fails, which must not lose the checkpoint."""
    half_completed = data.read(config.completions) if config.completions else None
    reference = networks.vocabulary_head(info.reference) if info.reference else None
    if read is not None:
        validation = texts.some(validation, REPORTED)
    try:
        return report.validate(
            model,
            info,
            validation,
            half_completed,
            pad_id,
            reference=reference,
            states=states,
            texts=read,
        )
    except ValueError as error:
        log.warning("no validation report: %s", error)
        return None


def _card(
    config: TrainConfig,
    items: Sequence[Any],
    validation: Sequence[Any],
    rates: Rates | None,
    read: Texts | None,
) -> str:
    # Cards are published: they contain the name of a local file, not its path.
    source = Path(config.data).name if Path(config.data).exists() else config.data
    rows = {
        "objective": config.objective,
        "options": config.options or "the defaults",
        "data": f"{source}, {len(items)} items, and {len(validation)} for validation",
        "epochs, batch, learning rate": f"{config.epochs:g}, {config.batch_size}, "
        f"{rates or config.learning_rate}",
        **({"probe": config.probe.model_dump()} if config.probe else {}),
        **({"texts": read.reads} if read else {}),
        **({"ensemble": f"{config.ensemble} heads"} if config.ensemble else {}),
        "LoRA": config.lora.model_dump() if config.lora else "no",
        "seed": config.seed,
    }
    lines = "\n".join(f"- {name}: {value}" for name, value in rows.items())
    return f"A scorer that steers its base model token by token.\n\n{lines}"
