"""What the routes over vLLM know of their server (`app.state.trimtab`)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vllm.engine.protocol import EngineClient

from trimtab_server.recheck import Again
from trimtab_server.scorer_list import NOT_ASKED, Version


@dataclass
class State:
    """The engine, what it serves, and whether guidance has been seen to work."""

    engine: EngineClient
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
