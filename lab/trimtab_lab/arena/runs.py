"""Runs: one setting of one method on the test prompts, and its result file."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from trimtab.errors import TrimtabError
from trimtab_lab.arena.frontier import Floats
from trimtab_models import outputs

DIGITS = 5
FILE_NAMES = {"scaled_beta": "strength"}
"""Fields whose name in files differs: files written earlier have "strength"."""


@dataclass(frozen=True)
class Run:
    """One setting of a method, with measures per answer ([prompts][answers]) or per prompt."""

    method: str
    scaled_beta: Annotated[float, Field(validation_alias=FILE_NAMES["scaled_beta"])]
    """β times the deviation of the scorer's scores."""
    settings: Mapping[str, Any]
    rewards: Mapping[str, Sequence[Sequence[float]]]
    kl: Sequence[Sequence[float]]
    tokens: Sequence[Sequence[int]]
    words: Sequence[Sequence[float]]
    diversity: float
    flops: float
    """Per answer."""
    drawn_tokens: float
    """Per answer: all tokens that the base sampled for it, kept or not."""
    scorer_tokens: float
    """Per answer, through all scorers."""
    seconds: float
    """Wall time of the whole run."""
    texts: Sequence[str]
    """First answer to each prompt."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    kl_tail: Sequence[Sequence[float]] = ()
    """Of the KL, what cutting the tail costs before any steering; empty in older files."""

    def reward(self, name: str) -> Floats:
        """Mean over answers: [prompts]."""
        return np.asarray(self.rewards[name], dtype=float).mean(1)

    @property
    def spent(self) -> Floats:
        """Mean KL over answers: [prompts]."""
        return np.asarray(self.kl, dtype=float).mean(1)

    @property
    def spent_on_tail(self) -> Floats:
        """Mean over answers of the KL for cutting the tail: [prompts]."""
        return np.asarray(self.kl_tail if len(self.kl_tail) else 0 * self.spent[:, None]).mean(1)

    @property
    def label(self) -> str:
        """The name of its file."""
        return f"{self.method} @ {self.scaled_beta:g}".replace(" ", "_")


def file_fields(item: Any) -> dict[str, Any]:
    """The fields of a dataclass by their names in files."""
    return {FILE_NAMES.get(name, name): value for name, value in vars(item).items()}


def fingerprint(path: str | Path) -> str:
    """Identify the weights at a path: a hash of its files; a hub name stays as it is."""
    folder = Path(path)
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("config.json")])
    if not files:
        return str(path)
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def save(folder: Path, run: Run) -> None:
    """Write a run; the file is either complete or absent."""
    folder.mkdir(parents=True, exist_ok=True)
    outputs.put(folder / f"{run.label}.json", json.dumps(file_fields(run), default=_plain) + "\n")


def find(folder: Path, method: str, scaled_beta: float, settings: Mapping[str, Any]) -> Run | None:
    """A saved run; None if there is none.

    Raises:
        TrimtabError: it was made with other settings.
        Damaged: (a ValueError) its file is not what `save` wrote.
    """
    path = folder / f"{f'{method} @ {scaled_beta:g}'.replace(' ', '_')}.json"
    if not path.exists():
        return None
    run = _read(path)
    current = json.loads(json.dumps(settings, default=_plain))
    differing = [
        name for name in {**run.settings, **current} if run.settings.get(name) != current.get(name)
    ]
    if differing:
        raise TrimtabError(
            f"{path} was made with other settings ({', '.join(sorted(differing))}); choose another "
            "--out, or remove that file to run it again."
        )
    return run


def read(folder: Path) -> list[Run]:
    """All runs of a folder.

    Raises:
        Damaged: (a ValueError) a file is not what `save` wrote.
    """
    return [_read(path) for path in sorted(folder.glob("[!.]*.json"))]


def _read(path: Path) -> Run:
    return outputs.read(path, Run, "remove it to run it again")


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return np.round(value.astype(float), DIGITS).tolist()
    return value.item() if isinstance(value, np.generic) else dict(value)
