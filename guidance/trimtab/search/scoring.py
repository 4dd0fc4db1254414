"""Score whole sequences with the worker's scorers, candidates of one prefix together.

A search returns one answer, so its floors and ceilings hold for the answer itself: what misses them
is taken off its value.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trimtab.errors import unscored
from trimtab.guide import Guide
from trimtab.params import MAX_BETA, GuidanceParams
from trimtab.rows import Row, next_key
from trimtab.scorers import CompositeScorer, Scorer
from trimtab.scoring.text import PromptContext, Turns
from trimtab.utility import kind_of

MISS = MAX_BETA
"""What an answer loses for each unit by which it misses a floor or a ceiling."""


def score_sequences(
    guide: Guide,
    params: GuidanceParams,
    sequences: Sequence[Sequence[int]],
    keys: Sequence[int],
    contexts: Sequence[PromptContext] = (),
    scorers: Mapping[str, Scorer] | None = None,
) -> dict[str, Any]:
    """Σ_i w_i·s_i of each sequence, and each s_i; (s_i − mean)/deviation if `normalize`.

    A scorer with a utility has the value of this utility as s_i. A scorer with a floor or a ceiling
    takes MISS off for each unit by which its mean return misses it, and has this mean as s_i;
    beside a floor, its weight is not used.

    Scorers that depend on strength use β·w_i. Sequences have at least two tokens. keys: row keys of
    the scorers' caches, one per sequence; sequences that differ only in their last token are
    candidates of one row. contexts: of each sequence's prompt, optional. scorers: versions of them;
    default: the guide's current ones.

    Returns:
        {"values": [n], "scores": {name: [n]}, "tokens": how many went through the scorers'
        networks, "error": None or {"scorer", "message", "overrun"}}
    """
    scorers = guide.registry.scorers if scorers is None else scorers
    contexts = contexts or [PromptContext()] * len(sequences)
    groups: dict[tuple[int, ...], list[int]] = {}  # prompt's length, prefix → numbers of sequences
    for i, sequence in enumerate(sequences):
        groups.setdefault((contexts[i].length or 0, *sequence[:-1]), []).append(i)
    rows = [
        Row(
            params,
            0,
            context=contexts[members[0]],
            scorers=scorers,
            prefix=np.array(prefix, dtype=np.int64),
            key=keys[members[0]],
        )
        for (_, *prefix), members in groups.items()
    ]
    candidates = [np.array([sequences[i][-1] for i in members]) for members in groups.values()]
    order = torch.tensor([i for members in groups.values() for i in members])
    before = _tokens_forwarded(guide, scorers)
    values = torch.zeros(len(sequences), dtype=torch.float64)
    scores: dict[str, list[float]] = {}
    for name, weight in (params.scorers or {}).items():
        reads = name in params.bounded or params.utility_of(name) != "mean"
        raw, mean = torch.empty(2, len(sequences), dtype=torch.float64)
        if reads:
            mean[order], raw[order] = guide.read_utility(name, rows, candidates)
        else:
            raw[order] = guide.score_rows(name, rows, candidates).double()
        fault = next((row.fault for row in rows if row.fault is not None), None)
        if fault is not None:
            return {"values": [], "scores": {}, "tokens": 0, "error": fault.fields}
        scores[name] = (mean if name in params.bounded else raw).tolist()
        values -= MISS * _missed(params, name, mean) if name in params.bounded else 0.0
        if name not in (params.floors or {}):
            values += weight * _scaled(params, name, raw, scorers[name])
    spent = max(_tokens_forwarded(guide, scorers) - before, 0)
    return {"values": values.tolist(), "scores": scores, "tokens": spent, "error": None}


def score_answers(
    guide: Guide,
    params: GuidanceParams,
    prompt: Sequence[int],
    answers: Sequence[Sequence[int]],
    turns: Turns | None = None,
    scorers: Mapping[str, Scorer] | None = None,
) -> list[dict[str, float]]:
    """Each scorer's score of each whole answer to one prompt of token ids; nothing is kept.

    turns: the conversation that the prompt was made from, if any. scorers: see `score_sequences`.

    Raises:
        ScorerFault: a scorer failed.
    """
    keys = [next_key() for _ in answers]
    contexts = [PromptContext(len(prompt), turns)] * len(answers)
    sequences = [[*prompt, *answer] for answer in answers]
    try:
        result = score_sequences(guide, params, sequences, keys, contexts, scorers)
    finally:
        guide.registry.forget(keys)
    if (error := result["error"]) is not None:
        raise unscored(error["scorer"], error["message"])
    return by_answer(result["scores"], len(answers))


def by_answer(scores: Mapping[str, Sequence[float]], count: int) -> list[dict[str, float]]:
    """Scores by scorer → the scores of each of `count` answers."""
    return [{name: values[i] for name, values in scores.items()} for i in range(count)]


def _scaled(params: GuidanceParams, name: str, raw: Tensor, scorer: Scorer) -> Tensor:
    """Scores as the weights multiply them."""
    kind, _ = kind_of(params.utility_of(name))
    if not params.normalize or kind in ("at_least", "at_most"):
        return raw
    mean = scorer.info.mean if kind == "mean" else 0.0
    return (raw - mean) / scorer.info.deviation


def _missed(params: GuidanceParams, name: str, mean: Tensor) -> Tensor:
    """By how much mean returns miss the floor and the ceiling of a scorer."""
    floor = (params.floors or {}).get(name, -torch.inf)
    ceiling = (params.ceilings or {}).get(name, torch.inf)
    return (floor - mean).clamp(min=0) + (mean - ceiling).clamp(min=0)


def _tokens_forwarded(guide: Guide, scorers: Mapping[str, Scorer]) -> int:
    own = {name: s for name, s in scorers.items() if not isinstance(s, CompositeScorer)}
    counts = {name: partial(getattr, scorer, "tokens_forwarded") for name, scorer in own.items()}
    return sum(
        guide.registry.calls.run(name, own[name], count, 0) for name, count in counts.items()
    )
