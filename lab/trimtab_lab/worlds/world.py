"""What a world is: prompts, exact rewards of answers, and a corpus that its base model reads."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

Reward = Callable[[str, str], float]
"""(prompt as the base reads it, completion without special tokens) → a number."""


@dataclass(frozen=True)
class World:
    """A world whose rewards are exact, so that nothing has to be believed.

    Each module of this package but this one and `build` describes one; `build` makes its base.
    """

    name: str
    gold: str
    """Name of the reward by which decoding methods are judged."""
    rewards: Mapping[str, Reward]
    """Every exact reward, gold among them."""
    supports: Mapping[str, tuple[float, float]]
    """Lowest and highest value of each reward."""
    bins: Mapping[str, int]
    """Bins of each reward's return distribution, evenly over its support."""
    prompts: Callable[[str, int, int], list[str]]
    """(split "train" or "test", n, seed) → n prompts, as the base reads them."""
    max_tokens: int
    """Most tokens of an answer."""
    documents: Callable[[int, int], list[str]] | None = None
    """(n, seed) → texts that the base learns from; None if the base is committed."""
    base: Path | None = None
    """Directory of the committed base, if there is one."""
    practice: tuple[int, float] = (1, 1.0)
    """Factors of an arena's training prompts, and of the rollouts of each: it takes many, where the
    reward asks of each word whether it follows from the request."""
