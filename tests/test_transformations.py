"""No transformation of training data loses a field, or passes one on, by accident."""

import importlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformations import (
    CUT,
    DROPPED,
    KEPT,
    MADE,
    Case,
    Fields,
    all_transforming,
    check,
    transforming,
)
from transformers import AutoTokenizer

from trimtab.params import GuidanceParams
from trimtab.sampling import Completion, RolloutSampling
from trimtab_lab import demo_scorers
from trimtab_lab.arena import refine, task
from trimtab_lab.rollouts import odds
from trimtab_lab.rollouts.journal import Journal
from trimtab_lab.rollouts.prefixes import _labelled, complete, cut_answers
from trimtab_lab.rollouts.prompts import read
from trimtab_lab.rollouts.run import prefix_rewards, roll_out
from trimtab_lab.worlds import build
from trimtab_models import data, demo
from trimtab_models.data.fields import ANSWER, PROMPT
from trimtab_models.demo import rollouts as demo_rollouts
from trimtab_models.objectives.base import completions
from trimtab_models.objectives.fudge import Fudge
from trimtab_models.report.validate import _flat, _half_completed
from trimtab_models.rows import Pair, Ranked, Rollout, pad
from trimtab_models.training import dpo
from trimtab_models.training.grounded import job, turns
from trimtab_models.training.grounded.guidance import rank
from trimtab_models.training.grounded.settings import GroundedConfig

rivals = importlib.import_module("trimtab_lab.rivals.train")  # its package has a function so
ROOT = Path(__file__).parents[1]
TOKENIZER = AutoTokenizer.from_pretrained(demo.base())
EOS: int = TOKENIZER.eos_token_id

_ids = st.lists(st.integers(10, 900), min_size=6, max_size=9, unique=True)
_positive = st.integers(1, 64).map(lambda n: n / 8)  # exact in float32
_texts = st.text("abcdefgh", min_size=1, max_size=9)


# --- what goes in: every field filled ------------------------------------------------------------


@st.composite
def _rollout(draw: Any) -> Fields:
    completion = draw(_ids)
    ratios = st.lists(_positive, min_size=len(completion), max_size=len(completion))
    return {
        "prompt": draw(_ids),
        "completion": completion,
        "label": draw(_positive),
        "strength": draw(_positive),
        "log_ratios": tuple(draw(ratios)),
        "rest": draw(_positive),
        "prefix_rewards": tuple(draw(ratios)),
        "step_rewards": tuple(draw(ratios)),
    }


@st.composite
def _pair(draw: Any) -> Fields:
    sides = draw(_ids), draw(_ids)
    return {
        **{"prompt": draw(_ids), "chosen": sides[0], "rejected": sides[1]},
        "rewards": (draw(_positive), draw(_positive)),
        "odds": ((1, 2, 0.25), (len(sides[0]), len(sides[1]), 0.75)),
    }


_ranked = st.fixed_dictionaries(
    {"prompt": _ids, "completions": st.lists(_ids, min_size=2, max_size=3, unique_by=tuple)}
)


@st.composite
def _record(draw: Any) -> Fields:
    one = draw(_rollout())
    ids = one["completion"]
    return {
        "prompt": [{"role": "user", "content": draw(_texts)}],
        "prompt_token_ids": one["prompt"],
        "tools": [{"type": "function", "function": {"name": "price"}}],
        "chat_template_kwargs": {"polite": True},
        "prompt_id": draw(_texts),  # further fields of a prompt's line
        "answer": draw(_texts),
        "index": draw(st.integers(1, 9)),
        "sample": draw(st.integers(1, 9)),
        "completion": draw(_texts),
        "completion_token_ids": ids,
        "logprobs": [-0.5] * len(ids),
        "kl": draw(_positive),
        "strength": one["strength"],
        "log_ratios": list(one["log_ratios"]),
        "reward": one["label"],
        "rewards": {"taste": draw(st.integers(100, 200))},
        "prefix_rewards": list(one["prefix_rewards"]),
        "spans": [{"start": 0, "end": 1, "value": draw(_positive)}],
        "label": 77.0,
    }


LINE = ("prompt_id", "answer")
OWN = (*PROMPT, *LINE)
"""What the prompt and its line say."""
SAID = dict.fromkeys(ANSWER, DROPPED)
THINGS: dict[type, st.SearchStrategy[Fields]] = {
    Rollout: _rollout(),
    Pair: _pair().filter(lambda pair: pair["chosen"] != pair["rejected"]),
    Ranked: _ranked,
}


# --- transformations of items --------------------------------------------------------------------


def _shorten(kind: type) -> Callable[[Fields], Fields]:
    def call(before: Fields) -> Fields:
        (item,) = data.shorten([kind(**before)], 8)
        return item._asdict()

    return call


def _tail_stays_known(before: Fields) -> None:
    after = _shorten(Rollout)(before)
    lost = before["log_ratios"][len(after["completion"]) :]
    assert len(after["log_ratios"]) == len(after["completion"]) < len(before["completion"])
    assert after["rest"] == before["rest"] + sum(lost)


def _padded(before: Fields) -> Fields:
    other = Rollout([1], [2] * 12, 0.0)  # a longer one, so that there is padding
    return _row(pad([Rollout(**before), other], pad_id=0))


def _row(rows: Any) -> Fields:
    prompt, tokens = int(rows.prompts[0]), int(rows.completions[0])
    return {
        "prompt": rows.input_ids[0, :prompt].tolist(),
        "completion": rows.input_ids[0, prompt : prompt + tokens].tolist(),
        "label": float(rows.labels[0]),
        "strength": float(rows.strengths[0]),
        "log_ratios": tuple(rows.log_ratios[0, :tokens].tolist()),
        "rest": float(rows.rests[0]),
        "prefix_rewards": tuple(rows.prefix_rewards[0, :tokens].tolist()),
        "step_rewards": tuple(rows.step_rewards[0, :tokens].tolist()),
    }


def _generated(before: Fields) -> Fields:
    """A language model's own answer to the prompt of an example."""
    fake = SimpleNamespace(model=None, eos=EOS, pad_id=0, config=SimpleNamespace(max_new_tokens=3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(turns, "generate", lambda *_, **__: [[1, 2, EOS]])
        (made,) = turns.Turns._generate(fake, [Rollout(**before)])
    return made._asdict()


def _estimated(before: Fields) -> Fields:
    """What the token rewards are taught of a generation."""
    taught: list[Any] = []

    def learn(ranked: list[Ranked], *_: Any) -> float:
        taught.extend(ranked)
        return 0.0

    fake = SimpleNamespace(
        config=SimpleNamespace(rankings=1, k=2, seed=0),
        step=0,
        _sample=lambda *_: [Rollout(**before)],
        _generate=list,
        judge=lambda generations: [500.0 + i for i in range(len(generations))],
        token_rewards=SimpleNamespace(learn=learn),
    )
    turns.Turns.estimate(fake)
    return {"prompt": taught[0].prompt, "completion": taught[0].completions[0]}


def _sides(kind: type) -> Callable[[Fields], Fields]:
    def call(before: Fields) -> Fields:
        rows = completions(kind(**before))
        rewards = {"rewards": tuple(row.label for row in rows)} if kind is Pair else {}
        return {**_gathered(kind, rows), **rewards}

    return call


def _gathered(kind: type, rows: Any) -> Fields:
    texts = [row.completion for row in rows]
    sides = dict(zip(("chosen", "rejected"), texts, strict=False))
    return {"prompt": rows[0].prompt} | (sides if kind is Pair else {"completions": texts})


def _reported(kind: type) -> Callable[[Fields], Fields]:
    def call(before: Fields) -> Fields:
        rollouts, _ = _flat([kind(**before)])
        return rollouts[0]._asdict() if kind is Rollout else _gathered(kind, rollouts)

    return call


def _ranked_by_label(before: Fields) -> Fields:
    (made,) = rank([Rollout(**before), Rollout(before["prompt"], [1], -1.0)], 2, "0")
    return {"prompt": made.prompt, "completion": made.completions[0]}


def _split(before: Fields) -> Fields:
    parts = data.split([Rollout(**before), Rollout([1], [2], 0.0)], 0.5, 0)
    return next(item for part in parts for item in part if item.prompt != [1])._asdict()


def _for_dpo(before: Fields) -> Fields:
    return {name.removesuffix("_ids"): v for name, v in dpo._dataset([Pair(**before)])[0].items()}


ALL = dict.fromkeys(Rollout._fields, KEPT)
NO_GUIDANCE = dict.fromkeys(
    ("label", "strength", "log_ratios", "rest", "prefix_rewards", "step_rewards"), DROPPED
)
PAIR = dict.fromkeys(Pair._fields, KEPT)
ORDER = {**PAIR, "rewards": DROPPED, "odds": DROPPED}
RANKED = dict.fromkeys(Ranked._fields, KEPT)
SHORT = {"prompt": CUT, "completion": CUT, "label": KEPT}
ITEMS: dict[str, tuple[type, Case]] = {
    "data.lengths:_with": (
        Rollout,
        Case(
            _shorten(Rollout),
            {
                **SHORT,
                "strength": KEPT,
                "log_ratios": CUT,
                "rest": MADE,
                "prefix_rewards": CUT,
                "step_rewards": CUT,
            },
        ),
    ),
    "data.lengths:_with, pairs": (
        Pair,
        Case(
            _shorten(Pair),
            {"prompt": CUT, "chosen": CUT, "rejected": CUT, "rewards": KEPT, "odds": MADE},
        ),
    ),
    "rows:pad": (Rollout, Case(_padded, ALL)),
    "objectives.fudge:Fudge.attributed": (
        Rollout,
        Case(
            lambda before: Fudge(threshold=100).attributed([Rollout(**before)])[0]._asdict(),
            {**ALL, "label": MADE},
        ),
    ),
    "objectives.base:completions": (Pair, Case(_sides(Pair), {**PAIR, "odds": DROPPED})),
    "objectives.base:completions, rankings": (Ranked, Case(_sides(Ranked), RANKED)),
    "report.validate:_flat": (Pair, Case(_reported(Pair), ORDER)),
    "report.validate:_flat, rankings": (Ranked, Case(_reported(Ranked), RANKED)),
    "report.validate:_flat, rollouts": (Rollout, Case(_reported(Rollout), ALL)),
    "training.grounded.turns:Turns._generate": (
        Rollout,
        Case(_generated, {"prompt": KEPT, "completion": MADE, **NO_GUIDANCE}),
    ),
    "training.grounded.turns:Turns.estimate": (
        Rollout,
        Case(_estimated, {"prompt": KEPT, "completion": KEPT, **NO_GUIDANCE}),
    ),
    "training.grounded.guidance:rank": (
        Rollout,
        Case(_ranked_by_label, {"prompt": KEPT, "completion": KEPT, **NO_GUIDANCE}),
    ),
    "data.derive:split": (Rollout, Case(_split, ALL)),
    "training.dpo:_dataset": (Pair, Case(_for_dpo, ORDER)),
}


# --- transformations of records ------------------------------------------------------------------


def _encoded(before: Fields) -> Fields:
    text = TOKENIZER.decode(before["completion_token_ids"], skip_special_tokens=True)
    record = {**before, "completion_token_ids": [*before["completion_token_ids"], EOS, 5, EOS]}
    record["completion"] = text  # the tokens that are there, for the spans
    for name in ("log_ratios", "prefix_rewards"):
        record[name] = [*before[name], 0.5, 0.5, 0.5]
    (item,) = data.rollouts([record], TOKENIZER)
    assert len(item.log_ratios) == len(item.completion) == len(before["log_ratios"]) + 1
    return {
        "prompt_token_ids": item.prompt,
        "completion_token_ids": item.completion[:-1],
        "reward": item.label - sum(item.step_rewards),
        "spans": [{"start": 0, "end": 1, "value": sum(item.step_rewards)}],
        "strength": item.strength,
        "log_ratios": list(item.log_ratios[:-1]),
        "prefix_rewards": list(item.prefix_rewards[:-1]),
    }


def _paired(make: Callable[[list[data.Record]], data.Record]) -> Callable[[Fields], Fields]:
    """Of a rollout and a worse one of the same prompt, what is said of the better."""

    def call(before: Fields) -> Fields:
        worse = {**before, "reward": -1.0, "completion": "worse", "completion_token_ids": [5]}
        made = make([dict(before), worse])
        if "chosen" in made:
            said = {f"completion{end}": made.pop(f"chosen{end}") for end in ("", "_token_ids")}
            assert [made.pop("rejected"), made.pop("rejected_token_ids")] == ["worse", [5]]
        else:
            said = {f"completion{end}": made.pop(f"completions{end}")[0] for end in ENDS}
        return {**made, **said}

    return call


ENDS = ("", "_token_ids")


def _sides_read(kind: str) -> Callable[[Fields], Fields]:
    def call(before: Fields) -> Fields:
        ids, other = before["completion_token_ids"], [5]
        record = {name: before[name] for name in OWN}
        if kind == "pairs":
            record |= {"chosen": "a", "chosen_token_ids": ids}
            record |= {"rejected": "b", "rejected_token_ids": other}
            (pair,) = data.pairs([record], TOKENIZER)
            return {"prompt_token_ids": pair.prompt, "completion_token_ids": pair.chosen}
        record |= {"completions": ["a", "b"], "completions_token_ids": [ids, other]}
        (ranked,) = data.ranked([record], TOKENIZER)
        return {
            "prompt_token_ids": ranked.prompt,
            "completion_token_ids": ranked.completions[0],
        }

    return call


def _in_files(call: Callable[[Path, Fields], Fields]) -> Callable[[Fields], Fields]:
    def with_folder(before: Fields) -> Fields:
        with tempfile.TemporaryDirectory() as folder:
            data.write(Path(folder) / "rollouts.jsonl", [before])
            return call(Path(folder), before)

    return with_folder


WORLD: Any = SimpleNamespace(
    supports={"taste": (0, 1)}, rewards={"taste": lambda prompt, completion: 5000.0}, name="reviews"
)


def _trained_on(folder: Path, before: Fields) -> Fields:
    path = build.training_data(WORLD, folder, "td-lambda", "taste")
    return data.read(path)[0]


def _of_rival(folder: Path, before: Fields) -> Fields:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rivals.data, "preferences", lambda records, *_: list(records))
        (made,) = rivals._pairs(WORLD, folder, {"taste": 1.0}, 1.0, 0)
    return made


class Engine:
    """Samples the same answer every time, as if return distributions had guided it."""

    tokenizer, max_length = TOKENIZER, 512

    def strength(self, params: Any) -> float | None:
        return 2.03 if params else None

    def stream(self, requests: Any, **_: Any) -> Any:
        for request in requests:
            yield request.key, Completion([11, 12], [-1.0, -2.0], 0.03, [0.01, 0.02])


ENGINE: Any = Engine()


def _rolled_out(reward: Any, guided: bool) -> Callable[[Path, Fields], Fields]:
    def call(folder: Path, before: Fields) -> Fields:
        """Rollouts of a file of prompts that are another run's rollouts."""
        prompts = read(folder / "rollouts.jsonl", TOKENIZER)
        params = GuidanceParams(beta=2.0) if guided else None
        with Journal(folder / "out.jsonl", {}) as journal:
            roll_out(ENGINE, prompts, RolloutSampling(n=1, params=params), reward, journal)
        return json.loads((folder / "out.jsonl").read_text())

    return call


def _completed(folder: Path, before: Fields) -> Fields:
    judged: list[Any] = []

    def reward(records: Any) -> list[float]:
        judged.extend(records)
        return [float(i) for i in range(len(records))]

    cuts = cut_answers(folder / "rollouts.jsonl", [0.5], None, 0)
    with Journal(folder / "out.jsonl", {}) as journal:
        complete(ENGINE, cuts, RolloutSampling(n=2), reward, journal)
    made = json.loads((folder / "out.jsonl").read_text())
    ours = {name: made.pop(name) for name in CUT_ANSWER}
    ids = before["completion_token_ids"]
    assert ours["prefix_token_ids"] == ids[: len(ids) // 2]
    return made | {"judged": judged[0]}


def _encoded_pair(before: Fields) -> Fields:
    """The fields of a pair's prompt, from a record that also has those of an answer."""
    ids = {"chosen_token_ids": before["completion_token_ids"], "rejected_token_ids": [5]}
    record = {**before, "chosen": "a", "rejected": "b", **ids, "odds": [[1, 1, 0.5]]}
    source, prompt, answers = odds._encoded(record, data.encoding.Encoder(TOKENIZER))
    assert prompt == before["prompt_token_ids"]
    return {**source, "completion_token_ids": answers[0]}


def _measured_pair(folder: Path, before: Fields) -> Fields:
    """The better side of a measured pair of rollouts, and what the reward reads of its prefix."""
    worse = {**before, "reward": -1.0, "completion": "worse", "completion_token_ids": [5, 6]}
    data.write(folder / "rollouts.jsonl", [before, worse])
    judged: list[Any] = []

    def reward(records: Any) -> list[float]:
        judged.extend(records)
        return [float(i) for i in range(len(records))]

    cuts = odds.cut_pairs(folder / "rollouts.jsonl", TOKENIZER, shares=[0.5])
    with Journal(folder / "out.jsonl", {}) as journal:
        odds.measure(ENGINE, cuts, RolloutSampling(n=2), reward, journal)
    made = json.loads((folder / "out.jsonl").read_text())
    assert made.pop("rejected_token_ids") == [5, 6]
    ours = ("score_chosen", "score_rejected", "odds", "measured", "generated_tokens")
    for name in ("rejected", *ours):
        made.pop(name)
    said = {f"completion{end}": made.pop(f"chosen{end}") for end in ENDS}
    return {**made, **said, "judged": judged[0]}


def _odds_row(folder: Path, before: Fields) -> Fields:
    return {name: v for name, v in _measured_pair(folder, before).items() if name != "judged"}


def _odds_judged(folder: Path, before: Fields) -> Fields:
    return _measured_pair(folder, before)["judged"]


def _unfinished(before: Fields) -> Fields:
    """The record of an answer's beginning that a reward reads."""
    judged: list[Any] = []

    def reward(records: Any) -> list[float]:
        judged.extend(records)
        return [1.0] * len(records)

    made = prefix_rewards(ENGINE, reward, dict(before))
    assert len(made) == len(judged) == len(before["completion_token_ids"])
    return judged[2]


def _labelled_prefixes(folder: Path, before: Fields) -> Fields:
    (folder / "rollouts").mkdir()
    data.write(folder / "rollouts" / "reviews.jsonl", [before])
    world = SimpleNamespace(base=demo.base(), rewards={"taste": lambda prompt, completion: 5000.0})
    arena: Any = SimpleNamespace(world=world)
    plan: Any = SimpleNamespace(world="reviews", reward="taste")
    (made,) = demo_scorers.labelled(arena, plan, folder)
    return made


CUT_ANSWER = ("prefix", "prefix_token_ids", "fraction", "returns", "mean", "standard_error")


def _measured(folder: Path, before: Fields) -> Fields:
    return {name: v for name, v in _completed(folder, before).items() if name != "judged"}


def _judged(folder: Path, before: Fields) -> Fields:
    return _completed(folder, before)["judged"]


def _reported_half(before: Fields) -> Fields:
    half = {**before, "prefix_token_ids": before["completion_token_ids"], "fraction": 0.5}
    half |= {"returns": [1], "mean": 1.0, "standard_error": 1.0}
    item, part = _half_completed(half, 1, 1024)
    assert item.label == 1.0
    return {
        "prompt_token_ids": item.prompt,
        "completion_token_ids": item.completion,
        "reward": part.reward,
    }


def _example(folder: Path, before: Fields) -> Fields:
    encoder = data.encoding.Encoder(TOKENIZER)
    config = GroundedConfig(
        objective="grounded-mle",
        **{"base": "demo", "reward": "", "data": str(folder / "rollouts.jsonl"), "out": folder},
    )
    ((item,), _) = job._examples(config, encoder)
    assert item == Rollout(item.prompt, item.completion, 0.0)
    return {"prompt_token_ids": item.prompt, "completion_token_ids": item.completion}


def _grounded_judge(before: Fields) -> Fields:
    judged: list[Any] = []

    def reward(records: Any) -> list[float]:
        judged.extend(records)
        return [1.0]

    other = {**before, "reward": 2.0, "completion": "another", "completion_token_ids": [5]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job.rewards, "load", lambda spec: reward)
        judge = job._judge("", TOKENIZER, [dict(before), other])
        judge([Rollout(before["prompt_token_ids"], [11, 12], 0.0)])
    return judged[0]


def _arena_reward(before: Fields) -> Fields:
    judged: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task.rewards, "load", lambda spec: lambda r: [judged.extend(r) or 1.0])
        task._reward("", {"text": {name: before[name] for name in OWN}})("text", "made up")
    return judged[0]


def _refined(folder: Path, before: Fields) -> Fields:
    """What stood in the file of rollouts, in the file that a scorer is refined on."""
    (folder / "data").mkdir()
    data.write(folder / "data" / "taste-rollouts.jsonl", [before])
    arena: Any = SimpleNamespace(world=WORLD)
    scale: Any = SimpleNamespace(seed=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refine, "_sample", lambda *_: [])
        path = refine.guided(arena, folder, scale, "distribution-base", "taste")
    return data.read(path)[0]


PROMPTS_KEPT = dict.fromkeys(OWN, KEPT)
IDS_ONLY = {**dict.fromkeys(OWN, DROPPED), "prompt_token_ids": KEPT, **SAID}
DRAWN = ("index", "sample", "completion", "completion_token_ids", "logprobs")
READ = {**IDS_ONLY, "completion_token_ids": KEPT}
ONE_SIDE = {**PROMPTS_KEPT, **SAID, "completion": KEPT, "completion_token_ids": KEPT}
EVERY = {**PROMPTS_KEPT, **dict.fromkeys(ANSWER, KEPT)}
ANOTHER_REWARD = {**EVERY, "reward": MADE, "prefix_rewards": DROPPED, "spans": DROPPED}
RECORDS: dict[str, Case] = {
    "data.formats:_rollout": Case(
        _encoded,
        {
            **READ,
            **dict.fromkeys(("reward", "strength", "log_ratios", "prefix_rewards", "spans"), KEPT),
        },
    ),
    "data.formats:_explicit": Case(_sides_read("pairs"), READ),
    "data.formats:_ranking": Case(_sides_read("ranked"), READ),
    "data.derive:_begun": Case(_paired(lambda r: data.preferences(r, 1, 0)[0]), ONE_SIDE),
    "data.derive:_begun, rankings": Case(_paired(lambda r: data.rankings(r, 2, 0)[0]), ONE_SIDE),
    "demo.rollouts:label": Case(
        lambda before: demo_rollouts.label([before], lambda *_: 5000.0)[0],
        ANOTHER_REWARD,
    ),
    "worlds.build:training_data": Case(_in_files(_trained_on), ANOTHER_REWARD),
    "rivals.train:_pairs": Case(_in_files(_of_rival), ANOTHER_REWARD),
    "demo_scorers:labelled": Case(
        _in_files(_labelled_prefixes),
        {**EVERY, "reward": MADE, "prefix_rewards": MADE, "spans": DROPPED},
    ),
    "arena.refine:guided": Case(_in_files(_refined), EVERY),
    # The reward becomes the return of the answer, with the rewards of its spans.
    "rollouts.prefixes:_labelled": Case(
        lambda before: _labelled(before, 1024), {**EVERY, "reward": MADE}
    ),
    "rollouts.prefixes:_measured": Case(
        _in_files(_measured), {**PROMPTS_KEPT, **SAID, "reward": MADE}
    ),
    "rollouts.prefixes:complete.answer": Case(
        _in_files(_judged),
        {**PROMPTS_KEPT, **SAID, "completion": MADE, "completion_token_ids": MADE},
    ),
    "rollouts.odds:_encoded": Case(
        _encoded_pair, {**PROMPTS_KEPT, **SAID, "completion_token_ids": KEPT}
    ),
    "rollouts.odds:_record": Case(
        _in_files(_odds_judged),
        {**PROMPTS_KEPT, **SAID, "completion": MADE, "completion_token_ids": MADE},
    ),
    "rollouts.odds:_measured": Case(
        _in_files(_odds_row),
        {**PROMPTS_KEPT, **SAID, "completion": MADE, "completion_token_ids": KEPT},
    ),
    "report.validate:_half_completed": Case(_reported_half, {**READ, "reward": KEPT}),
    "rollouts.run:roll_out.record": Case(
        _in_files(_rolled_out(None, guided=False)),
        {**PROMPTS_KEPT, **SAID, **dict.fromkeys(DRAWN, MADE)},
    ),
    "rollouts.run:roll_out.finish": Case(
        _in_files(_rolled_out(lambda records: [5000.0] * len(records), guided=False)),
        {**PROMPTS_KEPT, **SAID, **dict.fromkeys(DRAWN, MADE), "reward": MADE, "label": KEPT},
    ),
    "rollouts.run:roll_out.guided": Case(
        _in_files(_rolled_out(None, guided=True)),
        {
            **PROMPTS_KEPT,
            **SAID,
            **dict.fromkeys((*DRAWN, "kl", "strength", "log_ratios"), MADE),
        },
    ),
    "rollouts.run:prefix_rewards": Case(
        _unfinished,
        {**PROMPTS_KEPT, **SAID, "completion": MADE, "completion_token_ids": CUT},
    ),
    "training.grounded.job:_examples.read": Case(_in_files(_example), READ),
    "training.grounded.job:_judge": Case(
        _grounded_judge, {**PROMPTS_KEPT, **SAID, "completion": MADE}
    ),
    "arena.task:_reward.one": Case(_arena_reward, {**PROMPTS_KEPT, **SAID, "completion": MADE}),
}

MAKERS = {
    "data.formats:_pair": "messages are moved to the prompt, nothing else",
    "data.formats:_implicit": "the same of texts",
    "data.formats:_ranking": "",
    "demo.rollouts:sample": "fresh answers of the base: nothing is known of them yet",
    "arena.real:roll_out": "fresh answers of a real base; `test_arena_real` reads them",
    "arena.rivals:sample": "fresh answers of a tuned policy, for its divergence alone",
    "arena.rivals:_pass": "fresh answers, for their probabilities alone",
    "arena.ranks:_log_probabilities": "fresh answers, for their tokens' probabilities alone",
    "arena.values:_answers": "fresh answers of the base",
    "arena.refine:_record": "fresh guided answers; `test_arena_refine` reads them",
    "worlds.tiny:Tiny.__init__": "every answer there is, with its reward",
    "worlds.tiny:Tiny.stepwise": "the same, with a reward for every token",
    "worlds.tiny:Tiny.sample": "of those; the base says them all",
    "training.grounded.guidance:TokenRewards._loss": "moves a batch to a device",
    "training.grounded.turns:Turns._update": "moves a batch to a device",
    "rivals.divergence:divergence": "moves a batch to a device",
    "rivals.divergence:warping": "moves a batch to a device",
    "rivals.divergence:log_probabilities": "moves a batch to a device",
    "scoring:prefix_scores": "moves a batch to a device",
    "features:_batches": "tokens alone, of which the base's states are computed",
    "training.trainer:train.loss": "reads a batch",
    "training.ensembles:loss": "reads a batch",
    "training.ensembles:_trimmed": "cuts padding of a batch",
    "training.texts.loop:loss_of": "reads a batch",
    "training.texts.loop:text_reader": "reads a batch",
    "training.texts.loop:collate": "texts of prefixes; `test_training_texts` reads them",
    "training.texts.loop:_one_state": "an item as one state of a text, with its label",
    "taste.comparisons:compared": "answers that a user compares, no data of a training",
    "taste.comparisons:open_pairs": "the same",
    "arena.judge:compare": "two answers in one text, for a judge",
    "arena.grades:grades": "an answer and what stands before it, for a judge",
    "arena.after_report:after_rows": "a result",
    "arena.board:Board.curve": "a point of a plot",
    "arena.board:Board.oracle": "a point of a plot",
    "arena.report:stored": "a result",
    "arena.sweep:_figures": "a result",
    "arena.values:correlation": "a result",
    "adapters.vllm.offline:Sampler._add": "a request of vLLM",
    "training.grounded.job:_judge.judge": "see training.grounded.job:_judge",
    "rollouts.prompts:_prompt": "see rollouts.run:roll_out.record",
    "data.fields:of_prompt": "see data.derive:_begun",
}
"""Functions that handle no known rollout, and why their fields need no decision."""


# --- the tests -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ITEMS)
@settings(max_examples=25, deadline=None)
@given(st.data())
def test_items(name: str, drawn: st.DataObject) -> None:
    kind, case = ITEMS[name]
    before = drawn.draw(THINGS[kind])
    assert set(before) == set(kind._fields), f"{kind.__name__}: fill all fields"
    check(name, case, before)
    if name == "data.lengths:_with":
        _tail_stays_known(before)


@pytest.mark.parametrize("name", RECORDS)
@settings(max_examples=15, deadline=None)
@given(before=_record())
def test_records(name: str, before: Fields) -> None:
    assert set(before) == {*PROMPT, *ANSWER, *LINE}, "fill all fields"
    check(name, RECORDS[name], before)


def test_every_transformation_is_here() -> None:
    known = {name.partition(",")[0] for name in (*ITEMS, *RECORDS)} | set(MAKERS)
    there = set(all_transforming(ROOT))
    assert there <= known, f"say what these do to each field: {sorted(there - known)}"
    gone = (
        known
        - there
        - {"data.derive:split", "data.fields:of_prompt", "rollouts.prefixes:_labelled"}
    )
    assert not gone, f"these are no more: {sorted(gone)}"


# --- the controls: each must be noticed ----------------------------------------------------------

GUIDED = {
    **{"prompt": [*range(10, 18)], "completion": [*range(20, 28)], "label": 1.0},
    **{"strength": 2.0, "log_ratios": (0.5,) * 8, "rest": 1.0, "prefix_rewards": (0.25,) * 8},
    "step_rewards": (0.125,) * 8,
}


def test_a_lost_field_is_noticed() -> None:
    """As rollouts once were cut."""

    def forgets(before: Fields) -> Fields:
        cut = _shorten(Rollout)(before)
        return Rollout(cut["prompt"], cut["completion"], cut["label"])._asdict()

    case = ITEMS["data.lengths:_with"][1]
    check("as it is", case, GUIDED)
    with pytest.raises(AssertionError, match=r"strength is not kept: 2\.0 became 0\.0"):
        check("forgets", case._replace(call=forgets), GUIDED)


def test_an_inherited_field_is_noticed() -> None:
    def inherits(before: Fields) -> Fields:
        return {**before, "completion": [1, 2]}

    case = ITEMS["training.grounded.turns:Turns._generate"][1]
    with pytest.raises(AssertionError, match="label is not dropped"):
        check("inherits", case._replace(call=inherits), GUIDED)


def test_a_new_field_needs_a_decision() -> None:
    for name, (kind, case) in ITEMS.items():
        if kind is Rollout:
            with pytest.raises(AssertionError, match=r"say what becomes of \['colour'\]"):
                check(name, case, {**GUIDED, "colour": 1})


def test_a_new_transformation_needs_decisions() -> None:
    source = (
        "def halve(items):\n"
        "    def one(item):\n"
        "        return item._replace(completion=item.completion[::2])\n"
        "    return [one(item) for item in items]\n"
        "class Work:\n"
        "    def relabel(self, record):\n"
        "        return {**record, 'reward': 0.0}\n"
        "    def twice(self, item):\n"
        "        return Rollout(item.prompt, item.completion * 2, item.label)\n"
    )
    assert list(transforming(source)) == ["halve.one", "Work.relabel", "Work.twice"]
