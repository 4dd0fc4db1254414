"""Files of prompts as people have them: read as they stand, or refused by file and line."""

import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lab.made_up import MadeUp, count_words
from transformers import AutoTokenizer

from trimtab.errors import TrimtabError
from trimtab.sampling import RolloutSampling
from trimtab_lab.arena import task
from trimtab_lab.rollouts.journal import Journal
from trimtab_lab.rollouts.prefixes import complete, cut_answers
from trimtab_lab.rollouts.prompts import read
from trimtab_lab.rollouts.run import roll_out
from trimtab_models import demo, rewards

TOKENIZER = AutoTokenizer.from_pretrained(demo.base())
CHAT = [{"role": "user", "content": "How?"}]
ASKED = TOKENIZER(demo.chat("How?")).input_ids


def written(tmp_path, *records):
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_marks_and_carriage_returns_are_no_part_of_a_prompt(tmp_path):
    for name, text in (
        ("p.txt", "\ufeffHow?\r\n\r\nWhy?\r\n"),
        ("p.jsonl", '\ufeff{"prompt": "How?"}\r\n\r\n{"prompt": "Why?"}\r\n'),
    ):
        (tmp_path / name).write_bytes(text.encode())
        result = read(tmp_path / name, TOKENIZER, raw=True)
        assert [prompt.content for prompt in result] == ["How?", "Why?"]
        assert [prompt.place for prompt in result] == [
            f"{tmp_path / name}, line 1",
            f"{tmp_path / name}, line 3",
        ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"instruction": "How?", "input": ""}', "no field 'prompt' (it has: input, instruction)"),
        ('{"prompt_id": "a"}', "no field 'prompt'"),
        ('{"prompt": null}', "'prompt' is null"),
        ('{"prompt": ["How?"]}', "without the texts 'role' and 'content'"),
        ('{"prompt": [{"role": "user", "content": null}]}', "without the texts"),
        ('{"prompt": [{"role": "user", "content": ["How?"]}]}', "a part that is not text"),
        ('{"prompt": "a", "prompt_token_ids": [1.0]}', "not a list of whole numbers"),
        ('{"prompt": "a", "prompt_token_ids": [-1]}', "has -1, but the ids end at 1023"),
        ('{"prompt": "a", "prompt_token_ids": [9999]}', "has 9999, but the ids end at 1023"),
        ('{"prompt": "a", "prompt_token_ids": "12"}', "not a list of whole numbers"),
        ('{"prompt": "a", "prompt_token_ids": []}', "the prompt has no tokens"),
        ('{"prompt": "\\ud800"}', "half a surrogate pair"),
        ('{"prompt": "a", "answer": NaN}', "not a finite 64-bit float 'NaN'"),
        ('{"prompt": "a", "prompt": "b"}', "duplicate key 'prompt'"),
        (f'{{"prompt": {json.dumps(CHAT)}, "tools": "price"}}', "'tools' is text, but not JSON"),
    ],
)
def test_prompts_that_would_have_to_be_guessed_at(tmp_path, line, message):
    path = tmp_path / "p.jsonl"
    path.write_text(f'{{"prompt": "fine"}}\n\n{line}\n')
    with pytest.raises(TrimtabError) as caught:
        read(path, TOKENIZER)
    assert f"1 of 2 rows cannot be used: {path}, line 3: " in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bytes_and_arrays(tmp_path):
    (tmp_path / "p.txt").write_bytes(b"How?\n\xff\xfe\n")
    with pytest.raises(TrimtabError, match=r"p\.txt, line 2: not UTF-8"):
        read(tmp_path / "p.txt", TOKENIZER)
    (tmp_path / "p.json").write_text('[{"prompt": "a"},\n{"prompt": "b"}]')
    with pytest.raises(TrimtabError, match=r"p\.json, line 1: a JSON array"):
        read(tmp_path / "p.json", TOKENIZER)


def test_text_parts_and_turns_to_go_on_with(tmp_path):
    parts = [{"role": "user", "content": [{"type": "text", "text": "How?"}]}]
    begun = [*CHAT, {"role": "assistant", "content": "It is"}]
    path = written(tmp_path, {"prompt": parts}, {"prompt": begun})
    first, second = read(path, TOKENIZER)
    assert first.content == parts, "as it was written"
    assert first.token_ids == ASKED
    assert second.token_ids == [*ASKED, *TOKENIZER("It is").input_ids]
    with Journal(tmp_path / "o.jsonl", {}) as journal:
        roll_out(MadeUp(), [second], RolloutSampling(n=1, max_tokens=3), None, journal)
    record = json.loads((tmp_path / "o.jsonl").read_text())
    assert isinstance(record["completion"], str), "no turn of its own"


def test_what_a_line_says_stays_and_what_is_of_other_answers_does_not(tmp_path, caplog):
    line = {"prompt": CHAT, "prompt_id": "9f", "label": "x", "answer": 3}
    old = {"completion": "Fine.", "reward": 1.0, "strength": 2.0, "log_ratios": [1.0]}
    with caplog.at_level(logging.WARNING):
        result = read(written(tmp_path, {**line, **old}, line), TOKENIZER)
    expected = {"prompt_id": "9f", "label": "x", "answer": 3}
    assert [prompt.fields for prompt in result] == [expected, expected]
    assert [message.partition(": ")[2] for message in caplog.messages] == [
        f"'{name}' of 1 prompts belongs to other answers; ignored."
        for name in ("completion", "strength", "log_ratios", "reward")
    ]


def test_prompts_that_are_too_long_are_said_before_anything_is_drawn(tmp_path):
    path = written(tmp_path, {"prompt": "a"}, {"prompt": "x", "prompt_token_ids": [5] * 500})
    sampler, prompts = MadeUp(), read(path, TOKENIZER)
    with Journal(tmp_path / "o.jsonl", {}) as journal:
        roll_out(sampler, prompts, RolloutSampling(n=1, max_tokens=12), None, journal)
        assert sampler.drawn == 2
        with pytest.raises(TrimtabError, match=r"1 of 2 prompts are too long: .*p\.jsonl, line 2,"):
            roll_out(sampler, prompts, RolloutSampling(n=2, max_tokens=13), None, journal)
    assert sampler.drawn == 2


def test_answers_that_cannot_be_cut_are_counted_or_named(tmp_path, caplog):
    row = {"prompt": "a", "prompt_token_ids": [5], "completion": "b", "reward": 1}
    path = written(
        tmp_path,
        {**row, "completion_token_ids": [6]},
        {**row, "completion_token_ids": [6, 7]},
    )
    with caplog.at_level(logging.WARNING):
        (cut,) = cut_answers(path, [0.5], None, 0)
    assert caplog.messages == ["1 of 2 rollouts are skipped: only one token."]
    with (
        Journal(tmp_path / "o.jsonl", {}) as journal,
        pytest.raises(TrimtabError, match=r"are too long: .*p\.jsonl, line 2, has 1 tokens"),
    ):
        complete(MadeUp(), [cut], RolloutSampling(n=2, max_tokens=512), count_words, journal)
    for wrong in ([6, -7], [6, 1.0], [6, True], [6, 1024]):
        written(tmp_path, {**row, "completion_token_ids": wrong})
        with pytest.raises(ValueError, match=r"p\.jsonl, line 1: 'completion_token_ids'"):
            cut_answers(path, [0.5], None, 0, 1024)


def test_a_world_of_ones_own(tmp_path, monkeypatch, caplog):
    """A prompt in several lines is sampled once, and judged by all of its lines."""
    labelled = []
    monkeypatch.setattr(rewards, "load", lambda spec: lambda some: [labelled.extend(some) or 1.0])
    path = written(
        tmp_path,
        {"prompt": CHAT, "answer": 1, "kind": "x", "label": "good"},
        {"prompt": CHAT, "answer": 2, "kind": "x", "label": "good"},
        {"prompt": "How?", "prompt_token_ids": [5, 6]},
    )
    fields = {"gold": "r", "supports": {}, "bins": {}}
    files, specs = {"test": path}, {"r": ""}
    with caplog.at_level(logging.WARNING):
        world = task.own_world("mine", str(demo.base()), files, specs, 9, **fields)
    assert len(world.prompts("test", 9, 0)) == 2
    assert "1 of 3 prompts are duplicates; ignored." in caplog.text
    world.rewards["r"](demo.chat("How?"), "Fine.")
    assert labelled == [{"prompt": CHAT, "kind": "x", "label": "good", "completion": "Fine."}]
    with pytest.raises(TrimtabError, match=r"3 of 3 prompts are too long: .*p\.jsonl, line 1, has"):
        task.own_world("mine", str(demo.base()), files, specs, 512, **fields)


REPLIES = [
    ("0.5", "the reward returned text; expected a list"),
    (["0.5"], "the reward returned text; expected a number"),
    ([None], "the reward returned null; expected a number"),
    ([[1.0]], "the reward returned a list; expected a number"),
    ([1.0, 2.0], "2 numbers for 1 completions"),
    ([], "0 numbers for 1 completions"),
    (None, "the reward returned null; expected a list"),
    ({"a": 1}, "the reward returned an object; expected a list"),
    ([float("nan")], "the reward returned nan; expected a finite"),
    ([float("-inf")], "the reward returned -inf; expected a finite"),
    ([1e39], "the reward returned 1e+39; expected a finite"),
    ([10**400], "expected a finite number"),
    ([1j], "expected a number"),
]


@pytest.mark.parametrize(("reply", "message"), REPLIES, ids=[message for _, message in REPLIES])
def test_what_is_no_reward_is_said(reply, message):
    with pytest.raises(rewards.RewardError) as caught:
        rewards.label(lambda records: reply, [{"prompt": "a", "completion": "b"}])
    assert message in str(caught.value)


def test_numbers_of_any_library_are_rewards():
    for one in (True, 1, np.float32(1), np.array(1.0), torch.tensor(1.0), np.bool_(True)):
        result = rewards.label(lambda records, one=one: [one], [{}])
        assert result == [1.0]
        assert type(result[0]) is float
    assert rewards.label(lambda records: np.ones(2), [{}, {}]) == [1.0, 1.0]


def test_a_reward_reads_words_and_no_forms():
    """Text parts are text, and a null content is no "None"."""
    call = [{"type": "function", "function": {"name": "price", "arguments": {}}}]
    record = {
        "prompt": [
            {"role": "user", "content": [{"type": "text", "text": "How?"}]},
            {"role": "assistant", "content": None, "tool_calls": call},
        ],
        "completion": [{"role": "assistant", "content": [{"type": "text", "text": "Fine."}]}],
    }
    assert rewards.base.texts(record) == ("How?", "Fine.")
    with pytest.raises(rewards.RewardError, match="a part that is not text"):
        rewards.base.texts({**record, "completion": [{"role": "assistant", "content": [3]}]})


def test_a_classifier_reads_one_turn_of_one_that_goes_on():
    chat = rewards.classifier._chat(
        {"prompt": [*CHAT, {"role": "assistant", "content": "It"}], "completion": " is."}
    )
    assert chat == [*CHAT, {"role": "assistant", "content": "It is."}]
    assert SimpleNamespace(**chat[1]).content == "It is."
