"""What the routes know of the server they run in (`app.state.upstream`), and its canary.

Before the server calls itself ready, each scorer must have steered a short answer of the upstream:
that tries the key, the model's name, the log-probabilities and the scorer at once. It costs a few
tokens; a server that is unwell tries again when somebody asks for `/ready`, now and then.
"""

import asyncio
import logging
import time
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass, field

from trimtab.errors import TrimtabError
from trimtab.params import GuidanceParams
from trimtab.scorers.base import Scorer
from trimtab_server.protocol import GenerateRequest
from trimtab_server.recheck import Again
from trimtab_server.scorer_list import NOT_ASKED, SUSPENDED
from trimtab_server.upstream.steps import UpstreamDecoder

log = logging.getLogger(__name__)

GREETING = "Hello"
TOKENS = 2
AGAIN_SECONDS = 10.0


@dataclass
class UpstreamState:
    """The decoder, what it serves, and whether it has been seen to work."""

    decoder: UpstreamDecoder
    model: str
    default: Mapping[str, float] | None
    complaints: dict[str, str | None] = field(default_factory=dict)
    """What each scorer's last canary found wrong; None if nothing."""
    sung: float = 0.0
    singing: asyncio.Lock = field(default_factory=asyncio.Lock)
    again: Again = field(default_factory=Again)
    """The canary that somebody who asks for /ready waits for."""

    @property
    def scorers(self) -> Mapping[str, Scorer]:
        """Those that are served."""
        return self.decoder.guide.registry.scorers

    def complaint(self, name: str) -> str | None:
        """What is wrong with a scorer; None if nothing."""
        if self.decoder.guide.registry.calls.status(self.scorers[name]).suspended:
            return SUSPENDED
        return self.complaints.get(name, NOT_ASKED)

    @property
    def well(self) -> bool:
        """Whether every scorer steers, and the upstream answered its last call."""
        steers = all(self.complaint(name) is None for name in self.scorers)
        return steers and not self.decoder.client.failing

    async def sing(self) -> None:
        """Ask every scorer, but not too often."""
        async with self.singing:
            if self.sung and time.monotonic() - self.sung < AGAIN_SECONDS:
                return
            for name in self.scorers:
                self.complaints[name] = await self._complaint(name)
                if self.complaints[name] is not None:
                    log.error("scorer %s %s", name, self.complaints[name])
            self.sung = time.monotonic()

    async def _complaint(self, name: str) -> str | None:
        turns, naming = [{"role": "user", "content": GREETING}], self.decoder.naming
        chat = naming.path.startswith("chat")
        asked = GenerateRequest(prompt=GREETING, max_tokens=TOKENS, seed=0)
        params = GuidanceParams(scorers={name: 1.0}, k=10, mass=1.0)
        record = None
        try:
            prompt = naming.prompt(turns=turns) if chat else naming.prompt(text=GREETING)
            async with aclosing(self.decoder.run([prompt], asked, params)) as pieces:
                async for piece in pieces:
                    record = piece.record
        except TrimtabError as error:
            return f"failed its canary request: {error.message}"
        except Exception as error:  # whatever it is, the server is up but not ready
            return f"failed its canary request ({type(error).__name__})"
        if record is None or not (record["scored_steps"] > 0 and record["kl"] > 0):
            return "did not change the logits"
        return None
