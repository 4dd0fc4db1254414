"""What our routes know of the server they run in (`app.state.trimtab`)."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from trimtab_server.recheck import Again

NOT_ASKED = "has not been asked yet"
SUSPENDED = "is suspended: it took too long several times within an hour"


@dataclass(eq=False)
class Version:
    """One version of a scorer, as requests know it. A name's later versions are other scorers."""

    name: str
    number: int
    family: str | None
    reads: str = "tokens"
    parts: frozenset[str] = frozenset()  # scorers that a composite is made of
    distributional: bool = False  # whether it has histograms of returns
    users: int = 0  # HTTP requests that began with it and have not ended

    @property
    def key(self) -> str:
        """What the worker knows it by."""
        return f"{self.name}@{self.number}"


@dataclass
class State:
    """The engine, what it serves, and whether guidance has been seen to work."""

    engine: Any
    renderer: Any  # vLLM's, from text or messages to what the engine takes
    model: str
    scorers: dict[str, Version]
    default: Mapping[str, float] | None
    complaints: dict[str, str | None] = field(default_factory=dict)
    """What each scorer's last canary request found wrong; None if nothing."""
    faults: dict[str, int] = field(default_factory=dict)
    """How often each scorer had failed when its last canary request was made."""
    again: Again = field(default_factory=Again)
    """The canary requests that somebody who asks for /ready waits for."""

    def complaint(self, name: str) -> str | None:
        """What is wrong with a scorer; None if nothing."""
        return self.complaints.get(name, NOT_ASKED)


def listed(
    found: Iterable[Mapping[str, Any]],
    complaint: Callable[[str], str | None],
    default: Mapping[str, float],
) -> dict[str, Any]:
    """The answer of GET /v1/scorers, of what the guide tells of each scorer."""
    return {
        "object": "list",
        "data": [
            {
                "id": status["name"],
                "object": "scorer",
                **{key: value for key, value in status.items() if key != "name"},
                "healthy": complaint(status["name"]) is None and not status["suspended"],
                "default_weight": default.get(status["name"], 0.0),
            }
            for status in found
        ],
    }
