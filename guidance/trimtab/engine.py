"""The engine: what a server needs in order to decode under guidance.

Three implementations: vLLM, in the server; an OpenAI-compatible upstream (adapters/openai/); and a
tiny one in memory (adapters/memory.py).
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from trimtab.config import ScorerSpec
from trimtab.params import GuidanceParams
from trimtab.scoring.text import Turns
from trimtab.search import SearchParams

Record: TypeAlias = dict[str, Any]
"""What guidance did to one choice, see Records.report."""
ScorerStatus: TypeAlias = dict[str, Any]
"""A scorer and its health, see description.describe."""


@dataclass(frozen=True)
class Sampling:
    """How to sample; names and meanings are vLLM's."""

    max_tokens: int = 128
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    n: int = 1
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    ignore_eos: bool = False
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logprobs: int | None = None


@dataclass(eq=False)
class Version:
    """One version of a scorer, as a request uses it; the next version is another scorer."""

    name: str
    number: int
    family: str | None
    reads: str = "tokens"
    parts: frozenset[str] = frozenset()  # scorers that a composite is made of
    distributional: bool = False  # whether it has histograms of returns
    whole: bool = False  # whether it scores the whole vocabulary at once
    to_go: bool = False  # whether its scores lack the reward so far, which a search needs
    ensemble: bool = False  # whether it has several heads, whose spread caution takes off
    users: int = 0  # HTTP requests that began with it and have not ended

    @property
    def key(self) -> str:
        """Its name in the engine, such as "a@2"."""
        return f"{self.name}@{self.number}"


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt to continue: exactly one of text, token_ids and turns."""

    id: str = ""
    text: str | None = None
    token_ids: Sequence[int] | None = None
    turns: Turns | None = None
    sampling: Sampling = field(default_factory=Sampling)
    guidance: GuidanceParams | None = None  # with scorers resolved; None is the base, unrecorded
    search: SearchParams | None = None
    versions: Sequence[Version] = ()  # of its scorers; the current ones if empty
    stream: bool = False  # whether to yield pieces while the choice grows
    timed: bool = False  # whether its records have the seconds of each scorer, `scorer_seconds`
    answer: Sequence[int] = ()  # tokens of the answer that are already there, to be continued

    @property
    def streams_trace(self) -> bool:
        """Whether each piece has the trace of its tokens."""
        guidance = self.guidance
        return self.stream and guidance is not None and guidance.trace and self.search is None


@dataclass
class Piece:
    """The new part of one choice. The last piece of a choice has a finish reason and the record."""

    index: int
    text: str
    token_ids: list[int]
    finish_reason: str | None = None
    record: Record | None = None
    logprobs: list[dict[str, Any]] | None = None  # by token, see POST /generate
    prompt_tokens: int = 0
    search: Mapping[str, Any] | None = None  # the results of a search
    spent: Mapping[str, Any] | None = None  # tokens that a search spent
    trace: list[dict[str, Any]] | None = None
    """The steps of its tokens, if the request streams its trace; see Records.steps."""


class Engine(Protocol):
    """An engine that decodes under guidance."""

    model: str
    """The model's name, as clients know it."""
    greeting: GenerationRequest
    """A short request that shows whether a scorer steers: sampling and prompt, no guidance yet."""
    patience: float
    """Seconds that the greeting may take."""

    def generate(self, request: GenerationRequest) -> AsyncGenerator[Piece, None]:
        """Yield pieces of the choices. Closing the iterator early aborts the request.

        Raises:
            InvalidRequest: the engine does not support the request.
            ScorerFault: a scorer failed, and `on_error` is `fail`.
            TrimtabError: the engine failed.
        """

    async def score(
        self, request: GenerationRequest, answers: Sequence[str]
    ) -> list[dict[str, float]]:
        """The score of each whole answer to the request's prompt, by scorer of its guidance.

        An answer ends with the token that ends the engine's own answers, if it has one.

        Raises:
            InvalidRequest: the prompt or an answer is too long, or a scorer cannot read them.
            ScorerFault: a scorer failed.
            TrimtabError: the engine failed.
        """

    async def scorers(self, seconds: float) -> list[ScorerStatus]:
        """The status of every scorer that is served.

        Raises:
            NotReady: the engine does not answer within `seconds`.
        """

    def problem(self) -> str | None:
        """Why the engine itself is not ready; None if it is."""

    async def load(self, version: str, spec: ScorerSpec, root: Path) -> Mapping[str, Any]:
        """Load a scorer as a version ("name@2") that no request knows yet.

        Returns:
            {"family", "reads", "distributional", "whole", "ensemble"}

        Raises:
            ScorerRefused, NoRoom: it cannot be loaded.
        """

    async def serve(self, name: str, version: str | None) -> None:
        """Switch a name to a version, or remove the name if `version` is None."""

    async def drop(self, version: str) -> None:
        """Unload a version."""

    async def close(self) -> None:
        """Stop, and free all resources."""
