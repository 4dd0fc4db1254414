"""Files as people have them: each row is read as it stands, or named with its line."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from trimtab_models import data, demo
from trimtab_models.data import Record
from trimtab_models.training import initial, run
from trimtab_models.training.config import TrainConfig
from trimtab_models.training.grounded import job
from trimtab_models.training.grounded.settings import GroundedConfig

TOKENIZER = AutoTokenizer.from_pretrained(demo.base())
GOOD = b'{"prompt": "How?", "completion": "Fine.", "reward": 1}'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"prompt": "a", "prompt": "b"}', "duplicate key 'prompt'"),
        (b'{"prompt": [{"role": "user", "role": "x"}]}', "duplicate key 'role'"),
        (b'{"a": NaN}', "a number that is not a finite 64-bit float 'NaN'"),
        (b'{"a": {"b": [1, -Infinity]}}', "a number that is not a finite 64-bit float '-Infinity'"),
        (b'{"a": 1e999}', "a number that is not a finite 64-bit float '1e999'"),
        (b'{"a": "\xe9"}', "not UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
        (b'{"a": 1} {"b": 2}', "not JSON (Extra data, column 10)"),
        (b"{'a': 1}", "not JSON"),
        (b'"text"', "not a JSON object"),
        (b"null", "not a JSON object"),
    ],
)
def test_a_line_that_would_have_to_be_guessed_at(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GOOD + b"\r\n\n" + line + b"\n")
    with pytest.raises(data.BrokenRows) as caught:
        data.read(path)
    said = str(caught.value)
    assert f"of 2 rows cannot be used: {path}, line 3: {message}" in said or (
        line.startswith(b"\xff\xfe") and f"{path}, line 3: {message}" in said
    )
    assert "\n" not in said


def test_odd_words_are_no_odd_numbers(tmp_path: Path) -> None:
    row = {"prompt": "NaN and Infinity, 1e999", "n": 1e300, "m": [2e-5, {"k": -1e100}]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    assert data.read(tmp_path / "rows.jsonl") == [row]


@pytest.mark.parametrize("text", [b"[\n{},\n{}\n]\n", b'\n [{"a": 1}]'])
def test_an_array_is_said_once(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(text)
    with pytest.raises(data.BrokenRows, match=r"^1 of 1 rows .*rows\.json, line [12]: a JSON arr"):
        data.read(path)


@pytest.mark.parametrize("text", [b"", b"\n\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\r\n"])
def test_an_empty_file_holds_no_rows(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(text)
    assert data.read(path) == []
    with pytest.raises(ValueError, match=r"rows\.jsonl holds no rows"):
        data.load(path, "rollouts", TOKENIZER)


PAIR = {"prompt": "How?", "chosen": "Fine.", "rejected": "Bad."}
RANKING = {"prompt": "How?", "completions": ["Fine.", "So.", "Bad."]}


@pytest.mark.parametrize(
    ("kind", "record", "message"),
    [
        ("rollouts", {"instruction": "How?", "output": "Fine."}, "it has: instruction, output"),
        ("rollouts", {"prompt_id": "1", "completion": "b", "reward": 1}, "no field 'prompt'"),
        (
            "pairs",
            {"instruction": "How?", "chosen": "It is.", "rejected": "It was."},
            "no 'prompt', but a text 'instruction'",
        ),
        ("pairs", {**PAIR, "score_chosen": 1, "score_rejected": 2}, "the scores"),
        ("pairs", {**PAIR, "chosen_score": "1", "rejected_score": 0}, "are not all finite"),
        ("ranked", {**RANKING, "scores": [1, 2, 3]}, "the best completion must be first"),
        ("pairs", {"prompt": "How?", "completion": "Fine.", "reward": 1}, "no field 'chosen'"),
        ("rollouts", {**PAIR, "strength": True}, "no field 'completion'"),
        ("rollouts", {"prompt": "a", "completion": "b", "reward": 1, "strength": True}, "strength"),
        (
            "rollouts",
            {"prompt": "a", "completion": "b", "reward": 1, "completion_token_ids": [5.0]},
            "not a list of whole numbers",
        ),
        (
            "rollouts",
            {"prompt": "a", "completion": "b", "reward": 1, "prompt_token_ids": [False]},
            "not a list of whole numbers",
        ),
    ],
)
def test_rows_of_other_formats_are_named(
    tmp_path: Path, kind: str, record: Record, message: str
) -> None:
    path = tmp_path / "rows.jsonl"
    good = {**PAIR, **RANKING, "completion": "Fine.", "reward": 1}
    data.write(path, [good, record])
    with pytest.raises(data.BrokenRows, match=r"1 of 2 rows .*rows\.jsonl, line 2: ") as caught:
        data.load(path, kind, TOKENIZER)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "record", "tied"),
    [
        ("pairs", PAIR, {"score_chosen": 2.0, "score_rejected": 2.0}),
        ("ranked", RANKING, {"rewards": [3, 1, 1]}),
    ],
)
def test_ties_are_left_out_and_counted_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, record: Record, tied: Any
) -> None:
    path = tmp_path / "rows.jsonl"
    data.write(path, [record, {**record, **tied}, {**record, **tied}])
    with caplog.at_level(logging.WARNING):
        assert len(data.load(path, kind, TOKENIZER)) == 1
    (said,) = caplog.messages
    assert said.startswith("2 of 3 rows are left out: two of their completions have the same score")
    data.write(path, [{**record, **tied}])
    with pytest.raises(ValueError, match="holds no rows to train on"):
        data.load(path, kind, TOKENIZER)


def test_further_columns_are_left_alone(tmp_path: Path) -> None:
    """A "prompt_id" is no prompt, and "messages" beside a preference are not read."""
    more = {"prompt_id": "9f", "messages": [{"role": "user", "content": "x"}], "source": None}
    scores = {"score_chosen": 8.5, "score_rejected": 3}
    data.write(tmp_path / "plain.jsonl", [PAIR])
    data.write(tmp_path / "more.jsonl", [{**PAIR, **more, **scores}])
    plain, wide = (
        data.load(tmp_path / f"{name}.jsonl", "pairs", TOKENIZER) for name in ("plain", "more")
    )
    assert plain == [pair._replace(rewards=()) for pair in wide]
    assert wide[0].rewards == (8.5, 3.0)


def test_rows_that_the_network_cannot_read_are_named(tmp_path: Path) -> None:
    """The demo's base has 512 positions; cut rows are no fault."""
    path = tmp_path / "rows.jsonl"
    short = {"prompt": "How?", "completion_token_ids": [5, 6], "reward": 1.0}
    data.write(path, [short, {**short, "prompt_token_ids": [5] * 511}])
    config = TrainConfig(base="demo", data=str(path), out=tmp_path / "out")
    assert initial.reads(config) == 512
    message = (
        r"1 of 2 rows .*rows\.jsonl, line 2: prompt and completion have 513 tokens, .* reads 512"
    )
    for limit in (None, 513):
        with pytest.raises(data.BrokenRows, match=message):
            run._items(config.model_copy(update={"max_length": limit}), "rollouts", TOKENIZER, None)
    items, _ = run._items(
        config.model_copy(update={"max_length": 512}), "rollouts", TOKENIZER, None
    )
    assert [len(item.prompt) for item in items] == [len(TOKENIZER("How?").input_ids), 510]


def test_prompts_that_leave_no_room_to_generate_are_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    data.write(path, [{"prompt": "a", "prompt_token_ids": [5] * n} for n in (384, 385)])
    config = GroundedConfig(
        objective="grounded-reinforce", base="demo", data=str(path), reward="", out=tmp_path
    )
    with pytest.raises(data.BrokenRows, match=r"rows\.jsonl, line 2: prompt and answer need"):
        job._examples(config, data.encoding.Encoder(TOKENIZER))
