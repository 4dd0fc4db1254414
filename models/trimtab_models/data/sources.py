"""Sources of records: JSON Lines and parquet files, directories, data sets of the hub.

    data/rollouts.jsonl     a JSON Lines file; data/rollouts.parquet a parquet file
    data/                   all its *.jsonl and *.parquet files, in the order of their names,
                            or a data set saved by `save_to_disk` (its split "train", if several)
    data:test               another split of a saved data set
    owner/name              a data set of the hub, its split "train"
    owner/name:test         another split, or a slice of it ("owner/name:train[:1000]")
    owner/name:config:test  a split of a data set with several configurations

An existing file or directory is never looked up on the hub.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from trimtab_models import outputs
from trimtab_models.data.faults import DataRow, Record, convert, word
from trimtab_models.data.lines import json_lines

_NAME = re.compile(r"(?P<name>[^:]+)(?::(?P<config>[\w.+-]+)(?=:))?(?::(?P<split>.+))?")


def read(source: str | Path) -> list[Record]:
    """The records of a source, in its order.

    Raises:
        ValueError: rows are not JSON objects; they are named by file and line.
        OSError: the source does not exist or cannot be read.
    """
    return convert(rows(source), lambda record: record, "reading")


def write(path: str | Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write records as JSON Lines, atomically."""
    with outputs.writing(Path(path)) as part, open(part, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def rows(source: str | Path) -> Iterator[DataRow]:
    """The rows of a source, in its order, including those with faults."""
    path = Path(source)
    if path.is_dir():
        yield from _directory(path)
    elif path.exists():
        yield from _file(path)
    else:
        yield from _named(str(source))


def _file(path: Path) -> Iterator[DataRow]:
    return _parquet(path) if path.suffix == ".parquet" else json_lines(path)


def _parquet(path: Path) -> Iterator[DataRow]:
    return _data_set(path, _datasets().Dataset.from_parquet(str(path)))


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ValueError(
            "parquet files and data sets need `datasets`: pip install 'trimtab[train]'."
        ) from error
    return datasets


def _data_set(name: object, data_set: Iterable[Record]) -> Iterator[DataRow]:
    """Rows of a `datasets` data set, with places as in Python: name[3]."""
    return (
        DataRow(f"{name}[{i}]", {column: _unfilled(value) for column, value in record.items()})
        for i, record in enumerate(data_set)
    )


def _unfilled(value: Any) -> Any:
    """A column without the nulls that `datasets` adds so that all objects have the same keys.

    "content" stays, because it may be null beside tool calls.
    """
    if isinstance(value, list):
        return [_unfilled(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {k: _unfilled(v) for k, v in value.items() if v is not None or k == "content"}


def _directory(path: Path) -> Iterator[DataRow]:
    if _is_saved(path):
        yield from _saved(path, None)
        return
    kinds = (".jsonl", ".parquet")
    files = sorted(f for f in path.glob("[!.]*") if f.suffix in kinds and f.is_file())
    if not files:
        raise FileNotFoundError(
            f"{path} has no *.jsonl or *.parquet file, and is not a data set saved by save_to_disk."
        )
    for file in files:
        yield from _file(file)


def _is_saved(path: Path) -> bool:
    return any((path / name).exists() for name in ("state.json", "dataset_dict.json"))


def _saved(path: Path, split: str | None) -> Iterator[DataRow]:
    saved = _datasets().load_from_disk(str(path))
    if isinstance(saved, _datasets().Dataset):
        if split is not None:
            raise ValueError(f"{path} is a data set without splits; leave out ':{word(split)}'.")
        return _data_set(path, saved)
    name = split or (next(iter(saved)) if len(saved) == 1 else "train")
    if name not in saved:
        names = ", ".join(map(str, saved))
        raise ValueError(f"{path} has no split {name!r}, only {names}; use {path}:SPLIT.")
    return _data_set(f"{path}:{name}", saved[name])


def _named(source: str) -> Iterator[DataRow]:
    match = _NAME.fullmatch(source)
    name, config, split = match.group("name", "config", "split") if match else (source, None, None)
    if _is_saved(Path(name)):
        return _saved(Path(name), split)
    if Path(name).exists():
        raise FileNotFoundError(f"{name} has no splits; only data sets saved by save_to_disk do.")
    if (
        not match
        or name.startswith((".", "/", "~"))
        or name.count("/") > 1
        or Path(name).suffix in (".jsonl", ".json", ".parquet", ".csv", ".txt")
    ):
        raise FileNotFoundError(f"there is no file or directory {source}.")
    library = _datasets()
    try:
        data_set = library.load_dataset(name, config, split=split or "train")
    except (OSError, ValueError, RuntimeError) as error:
        raise OSError(
            f"there is no file or directory {source}, and it could not be loaded as a data set of "
            f"the hub: {word(error, 200)}"
        ) from error
    return _data_set(source, data_set)
