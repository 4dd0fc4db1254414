"""The state that our routes share (`app.state.trimtab`), for any engine."""

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from trimtab.engine import Engine, GenerationRequest, Piece, ScorerStatus, Version
from trimtab.streams import merged
from trimtab_server import tracing
from trimtab_server.cap_settings import NARROW, Caps
from trimtab_server.presets.store import Presets
from trimtab_server.recheck import Seen, SharedCheck
from trimtab_server.scorer_list import NOT_CHECKED

ANSWER_SECONDS = 5.0
"""Maximum time for the engine to list its scorers."""


@dataclass
class State:
    """The engine, its scorers, and the results of their readiness checks."""

    engine: Engine
    scorers: dict[str, Version]
    default: Mapping[str, float] | None
    caps: Caps = NARROW
    forward: Callable[[Any, Mapping[str, Any]], Awaitable[Any]] | None = None
    """(request, fields) → the answer to what is not guided; None: the engine answers it."""
    complaints: dict[str, str | None] = field(default_factory=dict)
    """The problem that each scorer's last readiness check reported, or None."""
    faults: dict[str, int] = field(default_factory=dict)
    """Number of failures of each scorer at its last check."""
    checked: dict[str, float] = field(default_factory=dict)
    """Time of each scorer's last check (time.monotonic)."""
    recheck: SharedCheck = field(default_factory=SharedCheck)
    """The repeated check that GET /ready waits for."""
    presets: Presets = field(default_factory=Presets)
    seen: Seen = field(default_factory=Seen)
    """The result of GET /ready for requests without a key."""

    @property
    def model(self) -> str:
        """The model's name for clients."""
        return self.engine.model

    @property
    def default_weights(self) -> Mapping[str, float]:
        """The scorers of requests that name none."""
        return self.default or dict.fromkeys(self.scorers, 1.0)

    def complaint(self, name: str) -> str | None:
        """The problem of a scorer, or None."""
        return self.complaints.get(name, NOT_CHECKED)

    async def statuses(self) -> list[ScorerStatus]:
        """The scorers that are served, with their versions.

        Raises:
            NotReady: the engine does not answer.
        """
        return [
            {**one, "version": self.scorers[one["name"]].number}
            for one in await self.engine.scorers(ANSWER_SECONDS)
            if one["name"] in self.scorers
        ]

    def versions(self, names: Mapping[str, float] | None) -> list[Version]:
        """The current versions of a request's scorers."""
        return [self.scorers[name] for name in names or ()]

    async def generate(self, requests: Sequence[GenerationRequest]) -> AsyncGenerator[Piece, None]:
        """The choices of all prompts, concurrently. Choice i of prompt p has the index p·n + i.

        The versions of the requests' scorers stay in use until the generator is closed.
        """
        used = [version for request in requests for version in request.versions]
        for version in used:
            version.users += 1
        try:
            async with aclosing(self._pieces(requests)) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            for version in used:
                version.users -= 1

    async def score(
        self, request: GenerationRequest, answers: Sequence[str]
    ) -> list[dict[str, float]]:
        """Each scorer's score of each whole answer, see Engine.score; its versions stay in use."""
        for version in request.versions:
            version.users += 1
        try:
            return await self.engine.score(request, answers)
        finally:
            for version in request.versions:
                version.users -= 1

    def _pieces(self, requests: Sequence[GenerationRequest]) -> AsyncGenerator[Piece, None]:
        streams = [self._numbered(number, request) for number, request in enumerate(requests)]
        return merged(streams) if len(streams) > 1 else streams[0]

    async def _numbered(
        self, number: int, request: GenerationRequest
    ) -> AsyncGenerator[Piece, None]:
        """The pieces of one prompt, with the indices that its choices have among all."""
        begun = time.time_ns()
        request = replace(request, timed=tracing.on())
        async with aclosing(self.engine.generate(request)) as pieces:
            async for piece in pieces:
                if piece.finish_reason is not None and request.guidance is not None:
                    tracing.choice(begun, request.guidance, piece.record)
                yield replace(piece, index=number * request.sampling.n + piece.index)
