"""Half-completed answers: what a value should be, measured by completing each m times.

Rollouts are cut at fractions of their tokens, and the base completes every piece m times. The mean
of the m returns estimates V(prefix) without bias; its standard error says how well.
"""

import json
import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.draws import Completion, Drawing
from trimtab.errors import TrimtabError
from trimtab.journal import Journal
from trimtab.rollout import Drawn, Group, Record, answer_of, run
from trimtab_models import rewards

if TYPE_CHECKING:  # it imports vLLM, which takes seconds
    from trimtab.offline import Sampler


@dataclass(frozen=True)
class Half:
    """A source rollout, and how much of its completion is kept."""

    source: Record
    fraction: float
    kept: int


def halves(
    path: str | Path, fractions: Sequence[float], limit: int | None, seed: int
) -> list[Half]:
    """The rollouts of a file, cut at the fractions; at most `limit` rollouts, drawn by the seed.

    Completions of a single token cannot be cut and are left out.

    Raises:
        TrimtabError: a line is no labelled rollout; or nothing is left.
        OSError: the file cannot be read.
    """
    rows = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").split("\n"), 1):
        if not line:
            continue
        try:
            record = json.loads(line)
            long = len(record["completion_token_ids"]) > 1 and len(record["prompt_token_ids"]) > 0
            record["reward"] = float(record.get("reward", record.get("label")))
        except (ValueError, LookupError, TypeError, AttributeError):
            raise TrimtabError(
                f"{path}, line {number}: not a rollout with token ids and a reward."
            ) from None
        rows += [record] if long else []
    if not rows:
        raise TrimtabError(f"{path} holds no completion of two tokens or more.")
    if limit is not None and limit < len(rows):
        chosen = random.Random(seed).sample(range(len(rows)), limit)
        rows = [rows[i] for i in sorted(chosen)]
    return [
        Half(row, f, max(1, math.floor(f * len(row["completion_token_ids"]))))
        for row in rows
        for f in fractions
    ]


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
    there = {record["index"] for record in journal.records}
    groups = [
        Group(
            i,
            [*half.source["prompt_token_ids"], *half.source["completion_token_ids"][: half.kept]],
            range(drawing.n),
            half.kept,
        )
        for i, half in enumerate(cuts)
        if i not in there
    ]

    def answer(group: Group, one: Completion) -> Record:
        source = cuts[group.index].source
        ids = [*source["completion_token_ids"][: group.done], *one.token_ids]
        return {**source, "completion": answer_of(sampler, source["prompt"], ids)}

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
        "index": index,
        "prompt": half.source["prompt"],
        "prompt_token_ids": half.source["prompt_token_ids"],
        "prefix": sampler.tokenizer.decode(ids, skip_special_tokens=True),
        "prefix_token_ids": ids,
        "fraction": half.fraction,
        "returns": returns,
        "mean": statistics.fmean(returns),
        "standard_error": statistics.stdev(returns) / math.sqrt(len(returns)),
        "reward": half.source["reward"],
    }
