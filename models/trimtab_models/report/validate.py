"""The numbers of a report, computed from a scorer network and held-out completions."""

import logging
import random
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from trimtab_models.data.encoding import stored_ids
from trimtab_models.data.encoding import vocabulary as base_vocabulary
from trimtab_models.data.faults import Fault
from trimtab_models.data.numbers import finite
from trimtab_models.features import States
from trimtab_models.info import ScorerInfo
from trimtab_models.objectives.base import completions as sides_of
from trimtab_models.report.rates import Rates
from trimtab_models.rows import Pair, Ranked, Rollout, remaining
from trimtab_models.scoring import prefix_scores
from trimtab_models.texts import Texts
from trimtab_models.validation import (
    Continued,
    Credit,
    Inheritance,
    Known,
    LengthCorrelation,
    PrefixAuc,
    ReciprocalRank,
    ValueAgreement,
    credit,
    inheritance,
    known,
    length_correlation,
    prefix_auc,
    token_mean_reciprocal_rank,
    value_agreement,
)
from trimtab_models.validation.estimates import Figures

log = logging.getLogger(__name__)
POINTS = 400  # maximum, in the plot of score against length


class Point(Figures):
    """One completion: its length in tokens, its score and its reward."""

    length: int
    score: float
    reward: float


class Report(Figures):
    """The numbers of a validation; see the classes of validation/ for each.

    is_value: whether the scores are mean returns.
    rates: None unless the training chose between learning rates.
    credit: how unequally tokens move the score; None if none does.
    values: None without half-completed answers. inheritance: empty without them.
    points: a random sample of up to `POINTS` completions, for the plot.
    """

    objective: str
    family: str
    is_value: bool
    completions: int
    prompts: int
    prefix_auc: PrefixAuc
    known: list[Known]
    reciprocal_rank: ReciprocalRank
    length: LengthCorrelation
    credit: Credit | None
    values: ValueAgreement | None
    inheritance: list[Inheritance]
    points: list[Point]
    rates: Rates | None = None


def validate(
    model: Any,
    info: ScorerInfo,
    items: Sequence[Rollout | Pair | Ranked],
    completions: Sequence[Mapping[str, Any]] | None,
    pad_id: int,
    *,
    reference: Any = None,
    states: States | None = None,
    texts: Texts | None = None,
    batch_size: int = 64,
    progress: bool = False,
    seed: int = 0,
) -> Report:
    """Validate a scorer on completions that it was not trained on.

    Args:
        model, info, pad_id, reference, states, texts, batch_size, progress: as for
            `prefix_scores`.
        items: rollouts, preferably several of each prompt; or pairs or rankings, whose completions
            are compared within each item, with their rank from the worst up as the reward.
        completions: records of half-completed answers ("prompt_token_ids", "prefix_token_ids",
            "fraction", "returns", "mean", "standard_error", "reward"), if there are any.
        seed: of the bootstraps and of the plotted sample.

    Raises:
        ValueError: nothing to validate on, all rewards equal, scores that are not finite, or a
            record that lacks a field.
    """
    options: dict[str, Any] = {
        "reference": reference,
        "states": states,
        "texts": texts,
        "batch_size": batch_size,
        "progress": progress,
    }
    rollouts, groups = _flat(items)
    scores = [s.numpy() for s in prefix_scores(model, info, rollouts, pad_id, **options)]
    if info.to_go:  # with the rewards so far, which the data has, they are of whole returns
        scores = [
            score + (rollout.label - np.array(remaining(rollout)))
            for score, rollout in zip(scores, rollouts, strict=True)
        ]
    labels = [rollout.label for rollout in rollouts]
    report = Report(
        objective=info.objective,
        family=info.family,
        is_value=info.is_value,
        completions=len(rollouts),
        prompts=len({tuple(rollout.prompt) for rollout in rollouts}),
        prefix_auc=prefix_auc(scores, labels, groups, seed=seed),
        known=known(scores, labels, groups, seed=seed),
        reciprocal_rank=token_mean_reciprocal_rank(scores, labels, groups, seed=seed),
        length=length_correlation(scores, labels, groups),
        credit=credit([np.diff(row) for row in scores], groups, seed=seed),
        values=None,
        inheritance=[],
        points=[
            Point(
                length=len(scores[i]),
                score=round(float(scores[i][-1]), 4),
                reward=round(labels[i], 4),
            )
            for i in random.Random(seed).sample(range(len(scores)), min(POINTS, len(scores)))
        ],
    )
    if completions and info.to_go:
        log.warning("completed prefixes have whole returns; they are left out of the report.")
    if not completions or info.to_go:
        return report
    vocabulary = states.vocabulary if states else model.get_input_embeddings().num_embeddings
    if texts is not None:
        vocabulary = base_vocabulary(texts.decoder)
    prefixes, continued = half_completed(completions, vocabulary)
    ends = [float(s[-1]) for s in prefix_scores(model, info, prefixes, pad_id, **options)]
    return report.model_copy(
        update={
            "values": value_agreement(
                ends,
                [prefix.label for prefix in prefixes],
                [record["standard_error"] for record in completions],
                [part.prompt for part in continued],
                seed=seed,
            ),
            "inheritance": inheritance(continued, groups, labels, seed=seed),
        }
    )


def half_completed(
    completions: Sequence[Mapping[str, Any]], vocabulary: int
) -> tuple[list[Rollout], list[Continued]]:
    """Half-completed answers as prefixes, labelled with their mean return; see `validate`.

    Raises:
        ValueError: a record lacks a field, or holds what cannot be read.
    """
    parts = [_half_completed(record, n, vocabulary) for n, record in enumerate(completions, 1)]
    return [prefix for prefix, _ in parts], [continued for _, continued in parts]


def _flat(items: Sequence[Rollout | Pair | Ranked]) -> tuple[list[Rollout], list[Hashable]]:
    """Completions with their rewards, and the group that each is compared within."""
    rollouts: list[Rollout] = []
    groups: list[Hashable] = []
    for number, item in enumerate(items):
        if isinstance(item, Rollout):
            rollouts.append(item)
            groups.append(tuple(item.prompt))
            continue
        sides = sides_of(item)  # the best first
        rollouts += [s._replace(label=float(len(sides) - 1 - i)) for i, s in enumerate(sides)]
        groups += [number] * len(sides)
    return rollouts, groups


def _half_completed(
    record: Mapping[str, Any], number: int, vocabulary: int
) -> tuple[Rollout, Continued]:
    """A half-completed answer as a prefix to score, and with the returns of its continuations."""
    needed = ("prompt_token_ids", "prefix_token_ids", "fraction", "returns", "mean")
    absent = [field for field in (*needed, "standard_error", "reward") if field not in record]
    if absent:
        raise ValueError(
            f"half-completed answer {number} lacks {absent}; expected records that "
            "`trimtab rollout` writes when it completes prefixes."
        )
    returns = record["returns"] if isinstance(record["returns"], list) else [None]
    numbers = [record[name] for name in ("fraction", "mean", "standard_error", "reward")]
    try:
        fields = dict(record)
        prompt, prefix = (stored_ids(fields, name, vocabulary) for name in ("prompt", "prefix"))
    except Fault as fault:
        raise ValueError(f"half-completed answer {number}: {fault}.") from None
    if not (prompt and prefix and all(map(finite, [*numbers, *returns]))):
        raise ValueError(
            f"half-completed answer {number} has no tokens, or its fraction, reward, returns, mean "
            "or standard_error is not a finite number."
        )
    return (
        Rollout(prompt, prefix, float(record["mean"])),
        Continued(tuple(prompt), record["fraction"], record["reward"], record["returns"]),
    )
