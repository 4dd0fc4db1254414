"""Measured prefix labels: cut both answers of a pair, and let the base continue them.

PARGS assumes that the prefix of a better answer is the better prefix. Here both sides of a pair are
cut at the same lengths, and the base completes each m times. The odds of a point are the share of
the m·m comparisons that the chosen side wins, ties counted half: an unbiased estimate of
P(G_chosen > G_rejected) + ½·P(equal). A side that has ended keeps its end and its reward.
"""

import logging
import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.errors import TrimtabError
from trimtab.sampling import Completion, RolloutSampling
from trimtab_lab.rollouts.journal import Journal
from trimtab_lab.rollouts.prompts import check_lengths
from trimtab_lab.rollouts.run import CompletedGroups, PromptGroup, Sampler, answer_of, run
from trimtab_models import data, rewards
from trimtab_models.data import sources
from trimtab_models.data.encoding import Encoder
from trimtab_models.data.faults import DataRow, Fault, Record, convert, noting
from trimtab_models.data.fields import SIDES, of_prompt
from trimtab_models.validation import play

log = logging.getLogger(__name__)
TWO = 2


@dataclass(frozen=True)
class CutPair:
    """Two answers to a prompt, and the points at which both are cut.

    answers: token ids, the chosen answer first.
    points: (share of the longer answer, tokens kept of each side) in ascending order; a side of
    which all tokens are kept has ended.
    """

    source: Record
    prompt: list[int]
    answers: tuple[list[int], list[int]]
    points: list[tuple[float, tuple[int, int]]]
    place: str = "a pair"
    """File and line of the pair, or the number of the pair of rollouts."""


def cut_pairs(
    path: str | Path,
    tokenizer: Any,
    *,
    shares: Sequence[float] = (),
    lengths: int | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> list[CutPair]:
    """The pairs of a file, cut; at most `limit` pairs, chosen by the seed.

    Args:
        path: preferences ("prompt", "chosen", "rejected"), or labelled rollouts, of which as many
            pairs of unequal reward as possible are made, each rollout in one pair.
        tokenizer: the base's.
        shares: the parts of its own tokens that are kept of each side.
        lengths: instead, how many numbers of tokens are drawn for each pair, the same for both
            sides: without repetition, from 1 to one less than the tokens of the longer side.
        limit: maximum number of pairs.
        seed: of all choices.

    Raises:
        ValueError: (also BrokenRows) rows are neither pairs nor labelled rollouts, or of the
            rollouts no two answers to a prompt have different rewards.
        TrimtabError: no pair can be cut.
        OSError: the file cannot be read.
    """
    places: list[str] = []
    rows = list(noting(sources.rows(path), places))
    if rows and not rows[0].fault and "completion" in rows[0].record:
        made = [_of_ranking(one) for one in data.rankings(data.read(path), TWO, seed)]
        places = [f"pair {i} of {path}" for i in range(len(made))]
        rows = [DataRow(*both) for both in zip(places, made, strict=True)]
    encoder = Encoder(tokenizer)
    pairs = convert(rows, lambda record: _encoded(record, encoder), "tokenising")
    known = [(*pair, place) for pair, place in zip(pairs, places, strict=True)]
    if limit is not None and limit < len(known):
        chosen = random.Random(seed).sample(range(len(known)), limit)
        known = [known[i] for i in sorted(chosen)]
    cuts = []
    for number, (source, prompt, answers, place) in enumerate(known):
        points = (
            [(share, _share(share, answers)) for share in sorted(set(shares))]
            if lengths is None
            else _drawn(lengths, answers, random.Random(f"{seed} {number}"))
        )
        ends = tuple(map(len, answers))
        points = [point for point in points if point[1] != ends]
        if points:
            cuts.append(CutPair(source, prompt, answers, points, place))
    if short := len(known) - len(cuts):
        log.warning("%d of %d pairs are skipped: only one token a side.", short, len(known))
    if not cuts:
        raise TrimtabError(f"{path} has no pair with an answer of two tokens or more.")
    return cuts


def _of_ranking(ranking: Record) -> Record:
    """A ranking of two as a pair."""
    record = {name: value for name, value in ranking.items() if name not in SIDES}
    for suffix in ("", "_token_ids"):
        if f"completions{suffix}" in ranking:
            record[f"chosen{suffix}"], record[f"rejected{suffix}"] = ranking[f"completions{suffix}"]
    return record


def _encoded(
    record: Record, encoder: Encoder
) -> tuple[Record, list[int], tuple[list[int], list[int]]]:
    """The fields of a pair's prompt, and its token ids."""
    record = {name: value for name, value in record.items() if value is not None}
    if "prompt" not in record:
        raise Fault("there is no 'prompt' beside 'chosen' and 'rejected'")
    answers = encoder.completion(record, "chosen"), encoder.completion(record, "rejected")
    if answers[0] == answers[1]:
        raise Fault("'chosen' and 'rejected' are the same")
    source = {name: value for name, value in of_prompt(record).items() if name not in SIDES}
    return source, encoder.prompt(record), answers


def _share(share: float, answers: tuple[list[int], list[int]]) -> tuple[int, int]:
    first, second = (max(1, math.floor(share * len(ids))) for ids in answers)
    return first, second


def _drawn(
    count: int, answers: tuple[list[int], list[int]], rng: random.Random
) -> list[tuple[float, tuple[int, int]]]:
    first, second = map(len, answers)
    longest = max(first, second)
    drawn = rng.sample(range(1, longest), min(count, longest - 1))
    return [(n / longest, (min(n, first), min(n, second))) for n in sorted(drawn)]


def measure(
    sampler: Sampler,
    pairs: Sequence[CutPair],
    sampling: RolloutSampling,
    reward: rewards.Reward,
    journal: Journal,
) -> None:
    """Complete both sides of each pair n times at each point; write one record for each pair.

    A record has the pair, its rewards as "score_chosen" and "score_rejected", and "odds":
    [tokens of chosen, tokens of rejected, P], the last of the whole answers. "measured" has for
    each other point its share of the answer, the returns of both sides and the counted games.
    "generated_tokens" are those of all completions.

    Raises:
        as `roll_out`.
    """
    sizes = [(pair.place, len(pair.prompt)) for pair in pairs]
    check_lengths(sizes, sampling.max_tokens, sampler.max_length)
    written = {record["index"] for record in journal.records}
    most = max(len(pair.points) for pair in pairs)  # a group's number gives its seeds
    groups = [
        PromptGroup(
            (i * most + at) * TWO + side,
            [*pair.prompt, *pair.answers[side][: kept[side]]],
            range(sampling.n),
            kept[side],
        )
        for i, pair in enumerate(pairs)
        if i not in written
        for at, (_, kept) in enumerate(pair.points)
        for side in range(TWO)
        if kept[side] < len(pair.answers[side])
    ]
    missing = {
        i: sum(kept[s] < len(pair.answers[s]) for _, kept in pair.points for s in range(TWO))
        for i, pair in enumerate(pairs)
    }
    returns: dict[int, dict[int, list[float]]] = defaultdict(dict)
    tokens: Counter[int] = Counter()

    def finish(batch: CompletedGroups) -> list[Record]:
        numbers = [group.index // TWO // most for group, _ in batch]
        answers = [
            _answer(sampler, pairs[i], group, one)
            for i, (group, completions) in zip(numbers, batch, strict=True)
            for one in completions
        ]
        labels = iter(rewards.label(reward, answers))
        for i, (group, completions) in zip(numbers, batch, strict=True):
            returns[i][group.index % (TWO * most)] = [next(labels) for _ in completions]
            tokens[i] += sum(len(one.token_ids) for one in completions)
        done = [i for i in dict.fromkeys(numbers) if len(returns[i]) == missing[i]]
        if not done:
            return []
        ends = rewards.label(reward, [one for i in done for one in _whole(sampler, pairs[i])])
        return [
            {
                **_measured(sampler, i, pairs[i], returns.pop(i), ends[TWO * n : TWO * n + TWO]),
                "generated_tokens": tokens[i],
            }
            for n, i in enumerate(done)
        ]

    already = TWO * most * sampling.n * len(written)
    run(sampler, groups, sampling, finish, journal, already=already)


def _answer(sampler: Sampler, pair: CutPair, group: PromptGroup, completion: Completion) -> Record:
    """A continued side, as its reward reads it."""
    begun = pair.answers[group.index % TWO][: group.kept]
    return _record(sampler, pair, [*begun, *completion.token_ids])


def _whole(sampler: Sampler, pair: CutPair) -> Iterable[Record]:
    return (_record(sampler, pair, ids) for ids in pair.answers)


def _record(sampler: Sampler, pair: CutPair, ids: list[int]) -> Record:
    return {
        **pair.source,
        "completion": answer_of(sampler, pair.source["prompt"], ids),
        "completion_token_ids": ids,
    }


def _measured(
    sampler: Sampler,
    index: int,
    pair: CutPair,
    returns: dict[int, list[float]],
    scores: Sequence[float],
) -> Record:
    """The record of a pair; `returns` by 2·point + side, absent for a side that has ended."""
    odds, measured = [], []
    for at, (share, kept) in enumerate(pair.points):
        sides = [returns.get(TWO * at + side, [scores[side]]) for side in range(TWO)]
        games = play(*sides)
        odds.append([*kept, games.odds])
        measured.append({"share": share, "returns": sides, **games._asdict()})
    odds.append([*map(len, pair.answers), play([scores[0]], [scores[1]]).odds])
    sides_of = zip(("chosen", "rejected"), pair.answers, strict=True)
    prompt = pair.source["prompt"]
    texts = {side: answer_of(sampler, prompt, ids) for side, ids in sides_of}
    return {
        **pair.source,
        "index": index,
        "prompt_token_ids": pair.prompt,
        **texts,
        "chosen_token_ids": pair.answers[0],
        "rejected_token_ids": pair.answers[1],
        "score_chosen": scores[0],
        "score_rejected": scores[1],
        "odds": odds,
        "measured": measured,
    }
