"""Files, directories and names of data sets."""

import sys
from pathlib import Path
from typing import Any

import datasets
import pytest

from trimtab_models import data

RECORDS = [
    {"prompt": "a", "completion": text, "reward": value}
    for text, value in (("ü €", 0.25), ("b", -1.0), ("c", 2.0))
]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / ".cache")
    datasets.disable_progress_bars()


def _set(records: list[dict[str, Any]] = RECORDS) -> datasets.Dataset:
    return datasets.Dataset.from_list(records)


def test_a_directory_is_its_files_in_order(tmp_path: Path) -> None:
    _set(RECORDS[1:2]).to_parquet(tmp_path / "b.parquet")
    data.write(tmp_path / "c.jsonl", RECORDS[2:])
    data.write(tmp_path / "a.jsonl", RECORDS[:1])
    (tmp_path / "notes.txt").write_text("no record")
    (tmp_path / ".hidden.jsonl").write_text("no record")
    assert data.read(tmp_path) == RECORDS
    assert data.read(tmp_path / "b.parquet") == RECORDS[1:2]


def test_broken_rows_are_named_by_their_own_file(tmp_path: Path) -> None:
    data.write(tmp_path / "a.jsonl", RECORDS)
    (tmp_path / "b.jsonl").write_bytes(b'{"a": 1}\n{"b": "\xff"}\n' + b"[" * 10_000 + b"\n")
    (tmp_path / "c.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n{"a": ' + b"1" * 5000 + b"}")
    _set([{"x": 1}]).to_parquet(tmp_path / "d.parquet")
    with pytest.raises(data.BrokenRows, match="3 of 9 rows") as caught:
        data.read(tmp_path)
    for place in (
        f"{tmp_path}/b.jsonl, line 2: not UTF-8",
        f"{tmp_path}/b.jsonl, line 3: nested more than 64 levels deep",
        f"{tmp_path}/c.jsonl, line 2: an integer with more than 300 digits",
    ):
        assert place in str(caught.value)


def test_a_saved_data_set(tmp_path: Path) -> None:
    _set().save_to_disk(tmp_path / "one")
    assert data.read(tmp_path / "one") == RECORDS
    parts = {"test": _set(RECORDS[:1]), "train": _set(RECORDS[1:])}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "two")
    assert data.read(tmp_path / "two") == RECORDS[1:]
    assert data.read(f"{tmp_path}/two:test") == RECORDS[:1]
    with pytest.raises(ValueError, match=r"no split 'dev', only test, train; use .*two:SPLIT"):
        data.read(f"{tmp_path}/two:dev")
    with pytest.raises(ValueError, match="a data set without splits"):
        data.read(f"{tmp_path}/one:train")


def test_rows_of_a_data_set_are_named_as_python_finds_them(tmp_path: Path) -> None:
    # What only other rows have is null here, which is no fault of its own.
    saved = [
        {**RECORDS[0], "label": None},
        {"prompt": "a", "completion": "b", "label": True},
        {"prompt": "a"},
    ]
    _set(saved).save_to_disk(tmp_path / "set")
    with pytest.raises(data.BrokenRows, match=r"1 of 3 rows .*set\[2\]: .*'completion'"):
        data.load(tmp_path / "set", "rollouts", _Tokenizer())


class _Tokenizer:
    """Bytes as ids."""

    eos_token_id = 256

    def get_vocab(self) -> dict[str, int]:
        return {"end": 256}

    def __call__(self, text: str, add_special_tokens: bool) -> Any:
        assert not add_special_tokens
        return type("", (), {"input_ids": list(text.encode())})


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("owner/name", ("owner/name", None, "train")),
        ("squad", ("squad", None, "train")),
        ("owner/name:test", ("owner/name", None, "test")),
        ("owner/name:train[:2]", ("owner/name", None, "train[:2]")),
        ("owner/name:pairs:test", ("owner/name", "pairs", "test")),
        ("owner/name:pairs.v-2:train[1:]+test", ("owner/name", "pairs.v-2", "train[1:]+test")),
    ],
)
def test_how_a_name_on_the_hub_is_read(
    monkeypatch: pytest.MonkeyPatch, source: str, expected: tuple[str, str | None, str]
) -> None:
    seen = []

    def load_dataset(name: str, config: str | None, split: str) -> datasets.Dataset:
        seen.append((name, config, split))
        return _set()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert data.read(source) == RECORDS
    assert seen == [expected]


def test_a_slice_of_a_repository_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's own loading, of a clone of a repository as the hub has it."""
    clone, real = tmp_path / "clone", datasets.load_dataset
    clone.mkdir()
    data.write(clone / "train.jsonl", RECORDS)
    monkeypatch.setattr(
        datasets, "load_dataset", lambda _, config, split: real(str(clone), config, split=split)
    )
    assert data.read("owner/name:train[1:]") == RECORDS[1:]
    with pytest.raises(OSError, match="owner/name:dev, and it could not be loaded as a data set"):
        data.read("owner/name:dev")


def test_what_is_not_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: object, **__: object) -> None:
        raise ConnectionError("no way out\nand more")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(OSError, match=r"directory owner/name, and it could not .*: no way out"):
        data.read("owner/name")
    for source in (tmp_path / "none", "./none", "a/b/c", "none.jsonl", "~/rows", ":train"):
        with pytest.raises(FileNotFoundError, match="there is no file or directory"):
            data.read(source)
    with pytest.raises(FileNotFoundError, match="no \\*\\.jsonl"):
        data.read(tmp_path)
    with pytest.raises(FileNotFoundError, match="has no splits"):
        data.read(f"{tmp_path}:train")


def test_json_lines_need_no_further_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data.write(tmp_path / "rows.jsonl", RECORDS)
    _set().to_parquet(tmp_path / "rows.parquet")
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert data.read(tmp_path / "rows.jsonl") == RECORDS
    for source in (tmp_path / "rows.parquet", "owner/name"):
        with pytest.raises(ValueError, match=r"pip install 'trimtab\[train\]'"):
            data.read(source)
