"""Half-completed answers: estimate the value of a prefix by completing it m times.

Rollouts are cut at fractions of their tokens, and the base completes every cut answer m times. The
mean of the m returns is an unbiased estimate of V(prefix); its standard error is stored beside it.
"""

import logging
import math
import random
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trimtab.errors import TrimtabError
from trimtab.sampling import Completion, RolloutSampling
from trimtab_lab.rollouts.journal import Journal
from trimtab_lab.rollouts.prompts import check_lengths
from trimtab_lab.rollouts.run import CompletedGroups, PromptGroup, Sampler, answer_of, run
from trimtab_models import rewards
from trimtab_models.data import encoding, formats, sources
from trimtab_models.data.faults import Fault, Record, convert, noting
from trimtab_models.data.fields import of_prompt

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CutAnswer:
    """A source rollout, cut to the first `kept` tokens of its completion."""

    source: Record
    fraction: float
    kept: int
    place: str = "a rollout"
    """File and line of the rollout."""


def cut_answers(
    path: str | Path,
    fractions: Sequence[float],
    limit: int | None,
    seed: int,
    vocabulary: int = sys.maxsize,
) -> list[CutAnswer]:
    """The rollouts of a file, cut at the fractions; at most `limit` rollouts, chosen by the seed.

    Completions of one token cannot be cut; they are skipped, and the log says how many. Token ids
    must be below `vocabulary`.

    Raises:
        BrokenRows: (a ValueError) lines that are not labelled rollouts, with their numbers.
        TrimtabError: no completion can be cut.
        OSError: the file cannot be read.
    """
    places: list[str] = []
    rollouts = convert(
        noting(sources.rows(path), places), lambda record: _labelled(record, vocabulary), "reading"
    )
    rows = [
        (record, place)
        for record, place in zip(rollouts, places, strict=True)
        if len(record["completion_token_ids"]) > 1
    ]
    if short := len(rollouts) - len(rows):
        log.warning("%d of %d rollouts are skipped: only one token.", short, len(rollouts))
    if not rows:
        raise TrimtabError(f"{path} has no completion of two tokens or more.")
    if limit is not None and limit < len(rows):
        chosen = random.Random(seed).sample(range(len(rows)), limit)
        rows = [rows[i] for i in sorted(chosen)]
    return [
        CutAnswer(row, f, max(1, math.floor(f * len(row["completion_token_ids"]))), place)
        for row, place in rows
        for f in fractions
    ]


def _labelled(record: Record, vocabulary: int) -> Record:
    """A rollout with token ids; its return is stored as "reward"."""
    for name in ("prompt", "completion"):
        if not encoding.stored_ids(record, name, vocabulary):
            raise Fault(f"not a sampled rollout: '{name}_token_ids' is missing")
    return {**record, "reward": formats.total(record)}


def complete(
    sampler: Sampler,
    cuts: Sequence[CutAnswer],
    sampling: RolloutSampling,
    reward: rewards.Reward,
    journal: Journal,
) -> None:
    """Complete each cut answer n times; write the returns, their mean and standard error.

    Raises:
        as `roll_out`.
    """
    sizes = [(cut.place, len(cut.source["prompt_token_ids"])) for cut in cuts]
    check_lengths(sizes, sampling.max_tokens, sampler.max_length)
    written = {record["index"] for record in journal.records}
    groups = [
        PromptGroup(
            i,
            [*cut.source["prompt_token_ids"], *cut.source["completion_token_ids"][: cut.kept]],
            range(sampling.n),
            cut.kept,
        )
        for i, cut in enumerate(cuts)
        if i not in written
    ]

    def answer(group: PromptGroup, completion: Completion) -> Record:
        source = cuts[group.index].source
        ids = [*source["completion_token_ids"][: group.kept], *completion.token_ids]
        return {
            **of_prompt(source),
            "completion": answer_of(sampler, source["prompt"], ids),
            "completion_token_ids": ids,
        }

    def finish(batch: CompletedGroups) -> list[Record]:
        answers = [answer(group, one) for group, completions in batch for one in completions]
        labels = iter(rewards.label(reward, answers))
        return [
            _measured(sampler, group.index, cuts[group.index], [next(labels) for _ in completions])
            for group, completions in batch
        ]

    run(sampler, groups, sampling, finish, journal, already=len(written) * sampling.n)


def _measured(sampler: Sampler, index: int, cut: CutAnswer, returns: list[float]) -> Record:
    ids = cut.source["completion_token_ids"][: cut.kept]
    return {
        **of_prompt(cut.source),
        "index": index,
        "prefix": sampler.tokenizer.decode(ids, skip_special_tokens=True),
        "prefix_token_ids": ids,
        "fraction": cut.fraction,
        "returns": returns,
        "mean": statistics.fmean(returns),
        "standard_error": statistics.stdev(returns) / math.sqrt(len(returns)),
        "reward": cut.source["reward"],
    }
