"""A world: prompts, exact rewards of answers, and a corpus that trains its base model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trimtab_models.demo.oracles import TextReward


@dataclass(frozen=True)
class World:
    """A world with exact rewards. `build` makes its base."""

    name: str
    gold: str
    """Name of the reward that judges decoding methods."""
    rewards: Mapping[str, TextReward]
    """Every exact reward, including gold."""
    supports: Mapping[str, tuple[float, float]]
    """Lowest and highest value of each reward."""
    bins: Mapping[str, int]
    """Number of bins of each reward's return distribution, evenly spaced over its support."""
    prompts: Callable[[str, int, int], list[str]]
    """(split "train" or "test", n, seed) → n prompts, as the base reads them."""
    max_tokens: int
    """Maximum tokens of an answer."""
    documents: Callable[[int, int], list[str]] | None = None
    """(n, seed) → texts that train the base; None if the base is committed."""
    base: Path | Callable[[], Path] | None = None
    """Directory of the committed base, if there is one, or a function that fetches it."""
    rollout_factors: tuple[int, float] = (1, 1.0)
    """Factors on an arena's training prompts and on the rollouts of each prompt. A reward that
    compares every word with the request needs many prompts."""
    real: bool = False
    """Whether the base is a language model of real text: see `real.py`."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Settings of every training, instead of the arena's own."""
