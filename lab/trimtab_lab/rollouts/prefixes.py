"""Half-completed answers: what a value should be, measured by completing each m times.

Rollouts are cut at fractions of their tokens, and the base completes every piece m times. The mean
of the m returns estimates V(prefix) without bias; its standard error says how well.
"""

import logging
import math
import random
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.errors import TrimtabError
from trimtab.sampling import Completion, Drawing
from trimtab_lab.rollouts.journal import Journal
from trimtab_lab.rollouts.prompts import check_lengths
from trimtab_lab.rollouts.run import Drawn, PromptGroup, Record, answer_of, run
from trimtab_models import rewards
from trimtab_models.data import encoding, formats, sources
from trimtab_models.data.faults import Fault, convert, noting
from trimtab_models.data.fields import of_prompt

if TYPE_CHECKING:  # it imports vLLM, which takes seconds
    from trimtab.adapters.vllm.offline import Sampler


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Half:
    """A source rollout, how much of its completion is kept, and where it stands."""

    source: Record
    fraction: float
    kept: int
    place: str = "a rollout"


def halves(
    path: str | Path,
    fractions: Sequence[float],
    limit: int | None,
    seed: int,
    vocabulary: int = sys.maxsize,
) -> list[Half]:
    """The rollouts of a file, cut at the fractions; at most `limit` rollouts, drawn by the seed.

    Completions of a single token cannot be cut; they are left out, and counted in the log. Token
    ids are below `vocabulary`.

    Raises:
        BrokenRows: (a ValueError) lines that are no labelled rollouts, each by its number.
        TrimtabError: nothing is left.
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
        log.warning("%d of %d rollouts are left out: of one token.", short, len(rollouts))
    if not rows:
        raise TrimtabError(f"{path} holds no completion of two tokens or more.")
    if limit is not None and limit < len(rows):
        chosen = random.Random(seed).sample(range(len(rows)), limit)
        rows = [rows[i] for i in sorted(chosen)]
    return [
        Half(row, f, max(1, math.floor(f * len(row["completion_token_ids"]))), place)
        for row, place in rows
        for f in fractions
    ]


def _labelled(record: Record, vocabulary: int) -> Record:
    """A rollout with token ids, its reward under "reward"."""
    for name in ("prompt", "completion"):
        if not encoding.given(record, name, vocabulary):
            raise Fault(f"not a rollout as it was sampled: there are no '{name}_token_ids'")
    return {**record, "reward": formats.reward(record)}


def complete(
    sampler: "Sampler",
    cuts: Sequence[Half],
    drawing: Drawing,
    reward: rewards.Reward,
    journal: Journal,
) -> None:
    """n completions of each half-completed answer: their returns, mean and standard error.

    Raises:
        as `roll_out`.
    """
    sizes = [(half.place, len(half.source["prompt_token_ids"])) for half in cuts]
    check_lengths(sizes, drawing.max_tokens, sampler.max_length)
    there = {record["index"] for record in journal.records}
    groups = [
        PromptGroup(
            i,
            [*half.source["prompt_token_ids"], *half.source["completion_token_ids"][: half.kept]],
            range(drawing.n),
            half.kept,
        )
        for i, half in enumerate(cuts)
        if i not in there
    ]

    def answer(group: PromptGroup, one: Completion) -> Record:
        source = cuts[group.index].source
        ids = [*source["completion_token_ids"][: group.done], *one.token_ids]
        return {
            **of_prompt(source),
            "completion": answer_of(sampler, source["prompt"], ids),
            "completion_token_ids": ids,
        }

    def finish(drawn: Drawn) -> list[Record]:
        answers = [answer(group, one) for group, completions in drawn for one in completions]
        labels = iter(rewards.label(reward, answers))
        return [
            _measured(sampler, group.index, cuts[group.index], [next(labels) for _ in completions])
            for group, completions in drawn
        ]

    run(sampler, groups, drawing, finish, journal, already=len(there) * drawing.n)


def _measured(sampler: "Sampler", index: int, half: Half, returns: list[float]) -> Record:
    ids = half.source["completion_token_ids"][: half.kept]
    return {
        **of_prompt(half.source),
        "index": index,
        "prefix": sampler.tokenizer.decode(ids, skip_special_tokens=True),
        "prefix_token_ids": ids,
        "fraction": half.fraction,
        "returns": returns,
        "mean": statistics.fmean(returns),
        "standard_error": statistics.stdev(returns) / math.sqrt(len(returns)),
        "reward": half.source["reward"],
    }
