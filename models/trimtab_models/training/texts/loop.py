"""The training loop over texts: an objective's own loss on one state of each row."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trimtab_models.classify import Classifier
from trimtab_models.files import Unusable
from trimtab_models.info import ScorerInfo
from trimtab_models.objectives import Objective
from trimtab_models.objectives.base import completions
from trimtab_models.rows import Pair, Rows, padded
from trimtab_models.scoring import text_scores
from trimtab_models.texts import Texts
from trimtab_models.training.texts.rows import Row
from trimtab_models.training.trainer import Batch, LossTrainer, fit, reader

DESCRIBED = 2000
"""Maximum number of rows whose scores give a scorer's mean and deviation."""


def train(
    objective: Objective,
    model: Any,
    rows: Sequence[Row],
    work: str | Path,
    *,
    texts: Texts,
    **options: Any,
) -> LossTrainer:
    """Train a network in place on rows of texts; resumes and raises as `trainer.fit`.

    Args:
        objective: one that `rows.can_draw`.
        model: of `networks.classifier` if the texts are not causal, else of `networks.build`.
        rows: from `rows.draw`.
        work: the run directory.
        texts: how the network reads.
        options: of `trainer.fit`; `validation` are rows.

    Raises:
        Unusable: (a ValueError) a text's score depends on the texts beside it.
    """
    if not texts.causal:
        _check_padding(model, texts)
    pad_id = padding(model, texts)
    outputs = text_reader(model, texts, pad_id)

    def collate_rows(chosen: Sequence[Row]) -> dict[str, Tensor]:
        return collate(objective, chosen, texts, pad_id)

    def loss(network: Any, batch: Batch) -> Tensor:
        return loss_of(objective, outputs, network, batch)

    return fit(model, rows, collate_rows, loss, work, **options)


def _check_padding(model: Any, texts: Texts) -> None:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not all(parameter.numel() for parameter in trained):
        return  # DeepSpeed keeps the weights elsewhere
    safe = Classifier(model, texts.tokenizer).padding_is_safe
    for parameter in trained:  # a Classifier freezes its network
        parameter.requires_grad_(True)
    if not safe:
        raise Unusable(
            f"a text's score by this {model.config.model_type} network depends on the texts beside "
            "it; choose another network."
        )


def padding(model: Any, texts: Texts) -> int:
    """The token that fills rows: the network's own, from which RoBERTa counts its positions."""
    own = model.config.get_text_config().pad_token_id
    known = [n for n in (own, texts.tokenizer.pad_token_id) if n is not None and n >= 0]
    return int(known[0]) if known else 0


def collate(
    objective: Objective, chosen: Sequence[Row], texts: Texts, pad_id: int
) -> dict[str, Tensor]:
    """A batch: the fields of `Rows` in which each answer is one state, its text's last token.

    Further fields: `later`, [rows] the text whose value is a row's target, or −1. These texts come
    after those of the rows; so input_ids and attention_mask may be longer than the other fields.
    """
    inputs = [
        one
        for row in chosen
        for one in texts.inputs(
            row.item.prompt, [side.completion[: row.length] for side in completions(row.item)]
        )
    ]
    own, later = len(inputs), []
    for row in chosen:
        later.append(-1 if row.later is None else len(inputs))
        if row.later is not None:
            [answer] = completions(row.item)
            inputs += texts.inputs(answer.prompt, [answer.completion[: row.later]])
    rows = objective.collate([_one_state(row) for row in chosen], pad_id)
    ids, mask = padded([one["input_ids"] for one in inputs], pad_id)
    ends = mask.sum(-1) - 1  # [texts]
    rows = rows._replace(input_ids=ids, attention_mask=mask, prompts=ends[:own])
    batch = {**rows._asdict(), "ends": ends}
    if any("token_type_ids" in one for one in inputs):
        kinds = [one.get("token_type_ids", [0]) for one in inputs]  # an empty text has none
        batch["token_type_ids"] = padded(kinds, 0)[0]
    if any(n >= 0 for n in later):
        batch["later"] = torch.tensor(later)
    return batch


def _one_state(row: Row) -> Any:
    """The item with answers of one token, so that its only state is the whole text."""
    if isinstance(row.item, Pair):
        return row.item._replace(prompt=[0], chosen=[0], rejected=[0])
    return row.item._replace(prompt=[0], completion=[0], log_ratios=(), prefix_rewards=())


def text_reader(
    model: Any, texts: Texts, pad_id: int
) -> Callable[[Any, Mapping[str, Tensor]], Tensor]:
    """A function that returns a network's outputs, (network, batch) → [texts, length, 1].

    A classifier's is the same at all positions of a text.
    """
    if texts.causal:
        every = reader(model, pad_id)
        return lambda network, batch: every(
            network, Rows(**{name: batch[name] for name in Rows._fields})
        )

    def outputs(network: Any, batch: Mapping[str, Tensor]) -> Tensor:
        names = ("input_ids", "attention_mask", "token_type_ids")
        logits = network(**{name: batch[name] for name in names if name in batch}).logits
        return logits[:, None].expand(-1, batch["input_ids"].shape[1], -1)

    return outputs


def loss_of(
    objective: Objective,
    outputs: Callable[[Any, Mapping[str, Tensor]], Tensor],
    network: Any,
    batch: Mapping[str, Tensor],
) -> Tensor:
    """The objective's loss of a batch of `collate`.

    Later texts go through the same forward, since processes must make equally many of them.
    """
    scores = outputs(network, batch)  # [texts, length, 1]
    rows = Rows(**{name: batch[name] for name in Rows._fields})
    if "later" in batch:
        later = batch["later"]
        values = scores[torch.arange(len(scores)), batch["ends"], 0].detach().float()  # [texts]
        rows = rows._replace(labels=torch.where(later >= 0, values[later], rows.labels))
    return objective.loss(scores[: len(rows.prompts)], rows)


def describe(
    objective: Objective, model: Any, texts: Texts, rows: Sequence[Row], base_model: str
) -> ScorerInfo:
    """The ScorerInfo of a trained scorer, with the statistics of its scores of drawn prefixes."""
    info = info_of(objective, texts, base_model)
    inputs = [
        one
        for row in rows[:DESCRIBED]
        for side in completions(row.item)
        for one in texts.inputs(side.prompt, [side.completion[: row.length]])
    ]
    values = text_scores(model, info, texts, inputs)
    deviation = max(float(values.std()), 1e-6)
    return info.model_copy(update={"mean": float(values.mean()), "deviation": deviation})


def info_of(objective: Objective, texts: Texts, base_model: str) -> ScorerInfo:
    """As `describe`, without the statistics."""
    return ScorerInfo(
        **{
            "family": "head" if texts.causal else "text",
            "objective": objective.name,
            "base_model": base_model,
            "reads": texts.reads,
            **objective.info(),
        }
    )
