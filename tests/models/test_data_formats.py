"""TRL's formats and ours as token ids; what is wrong with a record."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from trimtab_models import data, demo
from trimtab_models.data import Record
from trimtab_models.rows import Pair, Ranked, Rollout

TOKENIZER: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(demo.base())
EOS: int = TOKENIZER.eos_token_id


def _ids(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False).input_ids


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def _with_template(template: str | None) -> Any:
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.chat_template = template
    return tokenizer


def test_rollouts_take_rewards_before_labels() -> None:
    base = {"prompt": "How?", "completion": "Fine."}
    records = [
        {**base, "reward": -0.5, "label": 1.0},
        {**base, "reward": None, "label": 2},
        {**base, "label": True},
        {**base, "label": False},
    ]
    items = data.rollouts(records, TOKENIZER)
    assert [item.label for item in items] == [-0.5, 2.0, 1.0, 0.0]
    assert all(type(item.label) is float for item in items)
    assert items[0] == Rollout(_ids("How?"), [*_ids("Fine."), EOS], -0.5)


def test_an_eos_in_the_text_is_not_doubled() -> None:
    record = {"prompt": "How?", "completion": f"Fine.{TOKENIZER.eos_token}", "reward": 0}
    assert data.rollouts([record], TOKENIZER)[0].completion == [*_ids("Fine."), EOS]


def test_a_chat_prompt_may_have_a_text_completion() -> None:
    records = [
        {"prompt": [_user("How?")], "completion": completion, "reward": 0}
        for completion in ("Fine.", [_answer("Fine.")])
    ]
    text, chat = data.rollouts(records, TOKENIZER)
    assert text == chat
    assert text.prompt == _ids(demo.chat("How?"))


def test_the_prompt_of_chats_may_be_implicit() -> None:
    chosen = [_user("How?"), _answer("Yes."), _user("Why?"), _answer("Fine.")]
    rejected = [*chosen[:3], _answer("Bad.")]
    explicit = {"prompt": chosen[:3], "chosen": chosen[3:], "rejected": rejected[3:]}
    implicit = {"chosen": chosen, "rejected": rejected}
    # TRL too takes the prompt from chats that stand beside a text.
    beside = {**implicit, "prompt": "Why?"}
    (one,) = data.pairs([explicit], TOKENIZER)
    assert data.pairs([implicit, beside], TOKENIZER) == [one, one]
    assert TOKENIZER.decode(one.prompt) == (
        "<|user|>How?<|end|><|assistant|>Yes.<|end|><|user|>Why?<|end|><|assistant|>"
    )
    assert TOKENIZER.decode(one.rejected) == "Bad.<|end|>"


def test_the_prompt_of_texts_may_be_implicit() -> None:
    prompt = "<|user|>How?<|end|><|assistant|>"  # with an EOS of its own
    record = {"chosen": f"{prompt}Fine.", "rejected": f"{prompt}Bad.<|end|>"}
    expected = Pair(_ids(prompt), [*_ids("Fine."), EOS], [*_ids("Bad."), EOS])
    assert data.pairs([record], TOKENIZER) == [expected]
    # One may go on where the other ends.
    (one,) = data.pairs([{"chosen": "It is.", "rejected": "It is. No."}], TOKENIZER)
    assert one.chosen == [EOS]
    assert one.prompt + one.rejected == [*_ids("It is. No."), EOS]


def test_ids_stand_in_for_every_text() -> None:
    ids = {"chosen_token_ids": [5, 6, 7], "rejected_token_ids": [5, 8, EOS, 9]}
    text = {"prompt": "a", "chosen": "b", "rejected": "c"}
    explicit, implicit = data.pairs(
        [{**text, **ids, "prompt_token_ids": [4]}, {**ids, "chosen": "b", "rejected": "c"}],
        TOKENIZER,
    )
    assert explicit == Pair([4], [5, 6, 7], [5, 8, EOS])  # no EOS where the sample has none
    assert implicit == Pair([5], [6, 7], [8, EOS])


def test_rankings() -> None:
    texts = ["Fine.", "Well.", "Bad."]
    expected = [[*_ids(text), EOS] for text in texts]
    chats = {"prompt": [_user("How?")], "completions": [[_answer(text)] for text in texts]}
    plain = {"prompt": "How?", "completions": texts}
    given_ids = {**plain, "completions_token_ids": [[3], [4, EOS], [5]]}
    items = data.ranked([plain, chats, given_ids], TOKENIZER)
    assert items == [
        Ranked(_ids("How?"), expected),
        Ranked(_ids(demo.chat("How?")), expected),
        Ranked(_ids("How?"), [[3], [4, EOS], [5]]),
    ]


_texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(
    lambda text: "<|" not in text
)


@settings(max_examples=100, deadline=None)
@given(st.lists(_texts, min_size=1, max_size=3), _texts, _texts)
def test_prompt_and_completion_are_the_whole_chat(
    turns: list[str], chosen: str, rejected: str
) -> None:
    """Rendered in two parts, a chat has the ids that it has as a whole."""
    assume(chosen != rejected)
    chat = [(_user, _answer)[i % 2](turn) for i, turn in enumerate(turns)]
    record = {"chosen": [*chat, _answer(chosen)], "rejected": [*chat, _answer(rejected)]}
    (pair,) = data.pairs([record], TOKENIZER)
    for side in ("chosen", "rejected"):
        whole = TOKENIZER.apply_chat_template(record[side], tokenize=False)
        assert pair.prompt + getattr(pair, side) == _ids(whole)


@settings(max_examples=100, deadline=None)
@given(_texts, _texts, _texts)
def test_prompt_and_completion_are_the_whole_text(shared: str, a: str, b: str) -> None:
    assume(a != b)
    chosen, rejected = f"<|user|>{shared}{a}", f"<|user|>{shared}{b}"
    (pair,) = data.pairs([{"chosen": chosen, "rejected": rejected}], TOKENIZER)
    assert pair.prompt + pair.chosen == [*_ids(chosen), EOS]
    assert pair.prompt + pair.rejected == [*_ids(rejected), EOS]
    assert pair.chosen[0] != pair.rejected[0]
    # TRL cuts between characters; the tokens that are shared lie within the characters that are.
    prompt = TOKENIZER.decode(pair.prompt).rstrip("\ufffd")
    assert chosen.startswith(prompt)
    assert rejected.startswith(prompt)


CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def test_guided_rollouts_say_how() -> None:
    record = {"prompt": "How?", "completion_token_ids": [5, 6, EOS], "reward": 1.0}
    guided = {**record, "strength": 2, "log_ratios": [0.5, -1, 0]}
    plain, steered = data.rollouts([record, guided], TOKENIZER)
    assert (plain.strength, plain.log_ratios) == (0.0, ())
    assert (steered.strength, steered.log_ratios) == (2.0, (0.5, -1.0, 0.0))
    for wrong in ([0.5], "no", [0.5, "x", 0], [0.5, float("nan"), 0]):
        with pytest.raises(ValueError, match="'log_ratios'"):
            data.rollouts([{**guided, "log_ratios": wrong}], TOKENIZER)


def test_rewards_of_prefixes_are_one_for_each_token() -> None:
    record = {"prompt": "How?", "completion_token_ids": [5, EOS, 7], "reward": 1.0}
    (item,) = data.rollouts([{**record, "prefix_rewards": [0.25, 1, 1]}], TOKENIZER)
    assert item.prefix_rewards == (0.25, 1.0)
    assert data.rollouts([record], TOKENIZER)[0].prefix_rewards == ()
    for wrong in ([0.5], "no", [0.5, "x", 0], [0.5, float("inf"), 0]):
        with pytest.raises(ValueError, match="'prefix_rewards'"):
            data.rollouts([{**record, "prefix_rewards": wrong}], TOKENIZER)


def test_what_a_template_writes_after_eos_is_left_off() -> None:
    record = {"prompt": [_user("How?")], "completion": [_answer("Fine.")], "reward": 0}
    (item,) = data.rollouts([record], _with_template(CHATML))
    assert item == Rollout(_ids("<|user|>How?<|end|>\n<|assistant|>"), [*_ids("Fine."), EOS], 0.0)


def test_eos_follows_where_the_template_writes_none() -> None:
    record = {"prompt": [_user("How?")], "completion": [_answer("Fine.")], "reward": 0}
    (item,) = data.rollouts([record], _with_template(CHATML.replace("<|end|>\n", "\n")))
    assert item.completion == [*_ids("Fine.\n"), EOS]


def test_a_template_reads_tools_and_no_nulls() -> None:
    """As `datasets` stores messages, each has every field that any has."""
    tools = [{"type": "function", "function": {"name": "price", "parameters": {}}}]
    prompt = [{**_user("How?"), "name": None}]
    record = {"prompt": prompt, "completion": "Fine.", "reward": 0, "tools": tools}
    (item,) = data.rollouts([record], _with_template("{{ tools[0].function.name }}{{ messages }}"))
    assert TOKENIZER.decode(item.prompt) == "price" + str([_user("How?")])


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "has no chat template"),
        ("{{ raise_exception('no chats today') }}", r"refuses the messages \(no chats today\)"),
        # As reasoning models' templates do, which open the answer with a thought.
        (
            CHATML + "{% if add_generation_prompt %}<think>{% endif %}",
            "differently when 'completion'",
        ),
    ],
)
def test_a_template_that_cannot_be_used_is_said(
    tmp_path: Path, template: str | None, message: str
) -> None:
    record = {"prompt": [_user("How?")], "completion": [_answer("Fine.")], "reward": 0}
    data.write(tmp_path / "chats.jsonl", [record])
    with pytest.raises(ValueError, match=rf"chats\.jsonl, line 1: .*{message}"):
        data.load(tmp_path / "chats.jsonl", "rollouts", _with_template(template))


SECRET = "the secret of the row"
ROLLOUT = {"prompt": SECRET, "completion": SECRET, "reward": 1.0}
PAIR = {"prompt": SECRET, "chosen": SECRET, "rejected": f"{SECRET}!"}
RANKING = {"prompt": SECRET, "completions": [SECRET, f"{SECRET}!"]}


@pytest.mark.parametrize(
    ("kind", "record", "message"),
    [
        ("rollouts", {**ROLLOUT, "prompt": None}, "no field 'prompt' (it has: completion, reward)"),
        ("rollouts", {**ROLLOUT, "prompt": 7}, "'prompt' is a number; expected text or a list"),
        ("rollouts", {**ROLLOUT, "prompt": ""}, "'prompt' is empty"),
        ("rollouts", {**ROLLOUT, "prompt": []}, "'prompt' is empty"),
        ("rollouts", {**ROLLOUT, "prompt": [SECRET]}, "without the texts 'role' and 'content'"),
        ("rollouts", {**ROLLOUT, "prompt": [{"role": "user"}]}, "without the texts"),
        ("rollouts", {**ROLLOUT, "prompt": "\ud800"}, "half a surrogate pair"),
        ("rollouts", {"prompt": SECRET, "reward": 1}, "no field 'completion'"),
        ("rollouts", {**ROLLOUT, "completion": ""}, "'completion' is empty"),
        ("rollouts", {**ROLLOUT, "completion": True}, "'completion' is true or false"),
        ("rollouts", {**ROLLOUT, "completion": {}}, "'completion' is an object"),
        ("rollouts", {**ROLLOUT, "completion": [_answer(SECRET)]}, "so 'prompt' must be one too"),
        (
            "rollouts",
            {**ROLLOUT, "prompt": [_user("a")], "completion": [_answer("b"), _user("c")]},
            "'completion' has 2 messages",
        ),
        (
            "rollouts",
            {**ROLLOUT, "prompt": [_user("a")], "completion": [_answer("")]},
            "'completion' is empty",
        ),
        ("rollouts", {"prompt": SECRET, "completion": SECRET}, "neither 'reward' nor 'label'"),
        ("rollouts", {**ROLLOUT, "reward": "1"}, "'reward' is text; expected a number"),
        ("rollouts", {**ROLLOUT, "reward": float("nan")}, "64-bit float 'NaN'"),
        ("rollouts", {**ROLLOUT, "reward": float("-inf")}, "64-bit float '-Inf"),
        ("rollouts", {**ROLLOUT, "reward": 1e39}, "'reward' is 1e+39"),
        ("rollouts", {**ROLLOUT, "reward": -(10**400)}, "more than 300 digits '-100"),
        ("rollouts", {**ROLLOUT, "completion_token_ids": []}, "'completion_token_ids' is empty"),
        ("rollouts", {**ROLLOUT, "prompt_token_ids": []}, "'prompt' is empty"),
        ("rollouts", {**ROLLOUT, "completion_token_ids": [1, True]}, "not a list of whole numbers"),
        ("rollouts", {**ROLLOUT, "completion_token_ids": SECRET}, "not a list of whole numbers"),
        ("rollouts", {**ROLLOUT, "completion_token_ids": [3, 1024]}, "has 1024, but the ids end"),
        ("rollouts", {**ROLLOUT, "prompt_token_ids": [-1]}, "has -1, but the ids end at 1023"),
        ("pairs", {"prompt": SECRET, "chosen": SECRET}, "no field 'rejected'"),
        ("pairs", {**PAIR, "rejected": SECRET}, "'chosen' and 'rejected' are the same"),
        ("pairs", {"chosen": SECRET, "rejected": SECRET}, "are the same"),
        ("pairs", {"chosen": [_user("a")], "rejected": [_user("a")]}, "are the same"),
        ("pairs", {"chosen": [_user("a")], "rejected": [_user("b")]}, "'prompt' is empty"),
        ("pairs", {"chosen": "a", "rejected": [_user("b")]}, "'rejected' is a list; expected text"),
        ("pairs", {"chosen": "one", "rejected": "two"}, "share no beginning"),
        (
            "pairs",
            {"chosen": "", "rejected": "", "chosen_token_ids": [1], "rejected_token_ids": [1, 2]},
            "only the common beginning",
        ),
        ("ranked", {"prompt": SECRET}, "no field 'completions'"),
        ("ranked", {**RANKING, "completions": SECRET}, "must be lists of the same length"),
        ("ranked", {**RANKING, "completions": [SECRET]}, "has 1; a ranking needs two or more"),
        ("ranked", {**RANKING, "completions_token_ids": [[1]]}, "must be lists of the same length"),
        ("ranked", {**RANKING, "completions": [SECRET, ""]}, "'completions[1]' is empty"),
        (
            "ranked",
            {**RANKING, "completions": ["b", SECRET, SECRET]},
            "completions 1 and 2 (from 0) are the same",
        ),
    ],
)
def test_a_broken_record_is_named_and_not_repeated(
    tmp_path: Path, kind: str, record: Record, message: str
) -> None:
    good = {**ROLLOUT, **PAIR, **RANKING}
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (good, record, good)))
    with pytest.raises(data.BrokenRows) as caught:
        data.load(path, kind, TOKENIZER)
    said = str(caught.value)
    assert said.startswith(f"1 of 3 rows cannot be used: {path}, line 2: ")
    assert message in said
    assert SECRET not in said
    assert "\n" not in said
    path.write_text(json.dumps(good))
    assert len(data.load(path, kind, TOKENIZER)) == 1


def test_five_broken_rows_are_listed_and_all_counted(tmp_path: Path) -> None:
    rows = ["{", json.dumps({**ROLLOUT, "reward": None})] * 4 + [json.dumps(ROLLOUT)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(rows))
    with pytest.raises(data.BrokenRows, match="8 of 9 rows") as caught:
        data.load(path, "rollouts", TOKENIZER)
    said = str(caught.value)
    assert [f"line {n}:" in said for n in range(1, 9)] == [True] * 5 + [False] * 3
    assert "; and 3 more. Fix" in said


def test_a_tokenizer_needs_an_end() -> None:
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no EOS"):
        data.rollouts([ROLLOUT], tokenizer)


def test_load_cuts_and_refuses(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    data.write(path, [{**ROLLOUT, "completion": "Fine."}])
    (whole,) = data.load(path, "rollouts", TOKENIZER)
    limit = len(whole.prompt) + len(whole.completion) - 1
    (item,) = data.load(path, "rollouts", TOKENIZER, max_length=limit)
    assert item == Rollout(whole.prompt[1:], whole.completion, 1.0)
    with pytest.raises(ValueError, match="no kind of data 'rows'; there are rollouts, pairs"):
        data.load(path, "rows", TOKENIZER)
    path.write_text("")
    with pytest.raises(ValueError, match="holds no rows"):
        data.load(path, "rollouts", TOKENIZER)
