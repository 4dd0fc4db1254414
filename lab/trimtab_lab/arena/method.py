"""What the arena runs: a decoding method and the training of its scorer, as plain data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

STOP = 5.0  # nats per answer


@dataclass(frozen=True)
class Method:
    """A decoding method and its scorer."""

    name: str
    source: str
    scorer: str | None = None
    """Name of its scorer and of the training in `TRAININGS`."""
    k: int | Literal["all"] = 10
    mass: float = 1.0
    tail: Literal["truncate", "mean"] = "truncate"
    temperature: float = 1.0
    top_p: float = 1.0
    """Below 1, or at a temperature between, the KL is unknown: it is to another base."""
    warps: Literal["temperature", "top-p"] | None = None
    """What of the base its settings change: their strength is 1/temperature, or 1 − p."""
    scaled_betas: tuple[float, ...] | None = None
    """None: the ladder of the scale."""
    stop: float = STOP
    times: int = 1
    """Factor on the number of answers, where efficiency is claimed to a few hundredths."""
    search: Mapping[str, Any] | None = None
    """Fields of trimtab.search.SearchParams, if it searches."""
    rival: Literal["rl", "dpo", "soup"] | None = None
    """How the base itself is tuned, see rivals.py."""
    middle: bool = False
    """Whether the rival is its policy after half of the training."""
    over: Literal["rl", "dpo"] | None = None
    """The rival that it steers, instead of the base; see stacked.py."""
    target: Literal["gold", "composed", "dial"] = "gold"
    """What it optimises: the world's gold reward, a sum of rewards, or the length of answers."""
    group: Literal["base", "warp", "token", "search", "rival", "grid"] = "token"
    worlds: tuple[str, ...] | None = None
    """The worlds it supports; None: all."""

    def heat(self, scaled_beta: float) -> float:
        """The temperature of a setting."""
        return 1 / scaled_beta if self.warps == "temperature" else self.temperature

    def nucleus(self, scaled_beta: float) -> float:
        """The top-p of a setting."""
        return 1 - scaled_beta if self.warps == "top-p" else self.top_p


@dataclass(frozen=True)
class Training:
    """The training of a scorer from a world's rollouts."""

    objective: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    pairs: bool = False
    reward: str | None = None
    """None: the world's gold reward."""
    share: float = 1.0
    """Of the rollouts, the share that it reads."""
    refines: str | None = None
    """The training that this one continues, on answers that its scorer guided: see refine.py."""
