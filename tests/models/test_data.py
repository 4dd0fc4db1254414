"""Records: written and read again, as ids, as padded rows."""

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from trimtab_models import data, demo
from trimtab_models.rows import Rollout, pad


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(demo.base())


def test_records_survive_the_disk(tmp_path: Path) -> None:
    records = [{"prompt": "a\nb", "completion": "ü €", "reward": 0.25}, {"prompt": "", "x": [1]}]
    data.write(tmp_path / "r.jsonl", records)
    assert data.read(tmp_path / "r.jsonl") == records
    assert [path.name for path in tmp_path.iterdir()] == ["r.jsonl"]


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    data.write(tmp_path / "r.jsonl", [{"old": 1}])
    with pytest.raises(TypeError):
        data.write(tmp_path / "r.jsonl", [{"new": 1}, {"new": object()}])
    assert data.read(tmp_path / "r.jsonl") == [{"old": 1}]


@pytest.mark.parametrize("line", ["{", "[1]", "7"])
def test_a_bad_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"good": 1}\n' + line + "\n")
    with pytest.raises(ValueError, match="line 2"):
        data.read(path)


def test_sampled_ids_are_used_as_they_stand(tokenizer: PreTrainedTokenizerBase) -> None:
    eos = tokenizer.eos_token_id
    record = {
        "prompt": "ab",
        "completion": "c",
        "reward": 1,
        "prompt_token_ids": [9, 8],
        "completion_token_ids": [7, eos, 6, eos],
    }
    # What follows the first EOS is not the answer.
    assert data.rollouts([record], tokenizer) == [Rollout([9, 8], [7, eos], 1.0)]


def test_text_and_chats_become_the_same_ids(tokenizer: PreTrainedTokenizerBase) -> None:
    prompt, review = "How was the cafe?", "The price was fair, guys."
    chat = {
        "prompt": [{"role": "user", "content": prompt}],
        "chosen": [{"role": "assistant", "content": review}],
        "rejected": [{"role": "assistant", "content": "Yeah."}],
    }
    text = {"prompt": demo.chat(prompt), "chosen": review, "rejected": "Yeah."}
    (one,) = data.pairs([chat], tokenizer)
    assert [one] == data.pairs([text], tokenizer)
    assert tokenizer.decode(one.chosen) == review + tokenizer.eos_token


def test_rows_put_each_score_at_its_prefix() -> None:
    rows = pad([Rollout([5, 5], [1, 2, 3], 0.5), Rollout([5], [4], -0.5)], pad_id=0)
    assert rows.input_ids.tolist() == [[5, 5, 1, 2, 3], [5, 4, 0, 0, 0]]
    assert rows.attention_mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
    assert rows.labels.tolist() == [0.5, -0.5]
    # As values take the ids themselves: what is gathered must be the completions.
    gathered = rows.gather(rows.input_ids.float())
    assert gathered.tolist() == [[1, 2, 3], [4, 4, 4]]
    assert rows.mask().tolist() == [[True] * 3, [True, False, False]]
    assert gathered.dtype == torch.float32


def test_a_blank_line_is_no_row_and_still_counts(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf\r\n{"good": 1}\r\n\r\n  \n\xef\xbb\xbf{"good": 2}\n\n')
    assert data.read(path) == [{"good": 1}, {"good": 2}]
    path.write_bytes(path.read_bytes() + b"{\n")
    with pytest.raises(ValueError, match=r"1 of 3 rows cannot be used: .*rows\.jsonl, line 7: "):
        data.read(path)
