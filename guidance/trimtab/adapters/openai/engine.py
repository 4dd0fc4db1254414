"""An upstream as an engine: guide the revealed tokens, sample one, send the longer prefix.

upstream → alternatives of the next token → candidates, scores, fusion → a token → upstream …
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from trimtab.adapters.openai.choice import Choice, Upstream
from trimtab.adapters.openai.client import Client
from trimtab.adapters.openai.config import UpstreamConfig
from trimtab.adapters.openai.guide_thread import GuideThread
from trimtab.adapters.openai.naming import Naming, UpstreamPrompt
from trimtab.config import ScorerSpec
from trimtab.description import describe
from trimtab.engine import GenerationRequest, Piece, Record, Sampling, ScorerStatus
from trimtab.errors import (
    InvalidGuidance,
    InvalidRequest,
    NotReady,
    ScorerRefused,
    UpstreamTimeout,
    unreadable,
)
from trimtab.guide import Guide
from trimtab.params import GuidanceParams
from trimtab.scorers.base import Scorer
from trimtab.scoring.turns import turns
from trimtab.search.scoring import score_answers
from trimtab.streams import merged

GREETING = "Hello"
NEEDS_LOGITS = (
    "min_tokens",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logprobs",
)
"""Fields of Sampling that need the base's own logits."""
NEEDS_IDS = ("stop_token_ids", "ignore_eos")
"""Fields of Sampling that need the base's token ids."""


class UpstreamEngine:
    """Scorers over an upstream; `naming` identifies its tokens. See trimtab.engine.Engine.

    on_record: called with the record of each guided choice that ended, see load_engine.
    """

    def __init__(
        self,
        config: UpstreamConfig,
        guide: Guide,
        naming: Naming,
        client: Client,
        on_record: Callable[[Record | None], Any] = lambda record: None,
    ) -> None:
        self.guide, self.naming, self.client = guide, naming, client
        self.thread = GuideThread()
        self.model = config.model
        self.deadline = self.patience = config.deadline
        self._upstream = Upstream(guide, naming, client, self.thread, config.block, on_record)
        prompt: dict[str, Any] = {"text": GREETING}
        if naming.path.startswith("chat"):
            prompt = {"turns": [{"role": "user", "content": GREETING}]}
        self.greeting = GenerationRequest(**prompt, sampling=Sampling(max_tokens=2, seed=0))

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Piece, None]:
        """See Engine.generate.

        Raises:
            UpstreamFailed, UpstreamTimeout: see Client.ask; or the deadline has passed.
            ScorerFault: a scorer failed, and `on_error` is `fail`.
            InvalidRequest: the upstream does not support a field, or a scorer's chat template
                refuses the conversation.
        """
        self._check(request)
        # In a thread: the time of templates and tokenizers grows with the prompt.
        prompt = await asyncio.to_thread(
            self.naming.prompt, request.text, request.token_ids, request.turns
        )
        try:
            if request.answer:
                prompt = self._continued(prompt, request.answer)
            scorers = self.guide.registry.pinned(request)
            await self.thread.run(_check_conversation, prompt, scorers)
            choices = [
                self._in_time(Choice(self._upstream, index, prompt, request, scorers).pieces())
                for index in range(request.sampling.n)
            ]
            async with aclosing(merged(choices)) as pieces:
                async for piece in pieces:
                    piece.prompt_tokens = len(prompt.ids)
                    yield piece
        finally:
            self.thread.later(self.naming.release, prompt)

    def _continued(self, prompt: UpstreamPrompt, answer: Sequence[int]) -> UpstreamPrompt:
        """A prompt with the beginning of its answer."""
        if not self.naming.closed:
            raise InvalidRequest(
                "answer_token_ids needs the upstream's tokens, which this server does not know; "
                "leave it out, or start the server with --tokenizer.",
                param="answer_token_ids",
            )
        longer = self.naming.prompt(ids=[*prompt.ids, *answer])
        return replace(prompt, ids=longer.ids, answer_at=len(prompt.ids))

    async def _in_time(self, pieces: AsyncGenerator[Piece, None]) -> AsyncGenerator[Piece, None]:
        """The pieces of a choice, until the deadline."""
        try:
            async with asyncio.timeout(self.deadline), aclosing(pieces):
                async for piece in pieces:
                    yield piece
        except TimeoutError:
            raise UpstreamTimeout(
                f"the answer was not whole after {self.deadline:g} seconds."
            ) from None

    def _check(self, request: GenerationRequest) -> None:
        """Refuse fields that an upstream does not support."""
        if request.search is not None:
            raise InvalidRequest(
                "an upstream cannot be searched; leave search out.", param="search"
            )
        if request.guidance is not None and request.guidance.said:
            raise InvalidGuidance(
                "principles do not go with an upstream: after a principle its most likely tokens "
                "are others, and of the rest it reveals nothing. Leave principles and "
                "negative_prompt out.",
                param="principles",
            )
        neutral = Sampling()
        for name in NEEDS_LOGITS:
            if getattr(request.sampling, name) != getattr(neutral, name):
                raise InvalidRequest(
                    f"{name} does not go with an upstream, which reveals only its most likely "
                    "tokens; leave it out.",
                    param=name,
                )
        for name in NEEDS_IDS:
            if getattr(request.sampling, name) and not self.naming.closed:
                raise InvalidRequest(
                    f"{name} needs the upstream's tokens, which this server does not know; leave "
                    "it out, or start the server with --tokenizer.",
                    param=name,
                )

    async def score(
        self, request: GenerationRequest, answers: Sequence[str]
    ) -> list[dict[str, float]]:
        """See Engine.score."""
        prompt = await asyncio.to_thread(
            self.naming.prompt, request.text, request.token_ids, request.turns
        )
        used = prompt
        try:
            scorers = self.guide.registry.pinned(request)
            await self.thread.run(_check_conversation, prompt, scorers)
            tokens = [await asyncio.to_thread(self.naming.answer, answer) for answer in answers]
            used = replace(prompt, ids=[*prompt.ids, *chain.from_iterable(tokens)])
            if len(prompt.ids) + max(map(len, tokens), default=0) > self.naming.length:
                raise InvalidRequest(
                    f"a prompt and its answer have more than {self.naming.length} tokens; "
                    "shorten them."
                )
            params = request.guidance or GuidanceParams(beta=0.0)
            conversation = turns(prompt.turns)
            return await self.thread.run(
                score_answers, self.guide, params, prompt.ids, tokens, conversation, scorers
            )
        finally:
            self.thread.later(self.naming.release, used)

    async def scorers(self, seconds: float) -> list[ScorerStatus]:
        """See Engine.scorers."""
        try:
            return await asyncio.wait_for(self.thread.run(describe, self.guide), seconds)
        except TimeoutError:
            raise NotReady("the scorers do not answer: one of them takes long.") from None

    def problem(self) -> str | None:
        """See Engine.problem."""
        return "the upstream fails" if self.client.failing else None

    async def load(self, version: str, spec: ScorerSpec, root: Path) -> Mapping[str, Any]:
        """Not supported: an engine over an upstream keeps the scorers that it started with."""
        raise ScorerRefused("a server over an upstream does not load scorers while it serves.")

    async def serve(self, name: str, version: str | None) -> None:
        """See Engine.serve."""
        await self.thread.run(self.guide.registry.serve, name, version)

    async def drop(self, version: str) -> None:
        """See Engine.drop."""
        await self.thread.run(self.guide.registry.versions.pop, version, None)

    async def close(self) -> None:
        """Close the upstream's connections and the thread."""
        self.thread.shutdown(cancel_futures=True)
        await self.client.close()


def _check_conversation(prompt: UpstreamPrompt, scorers: Mapping[str, Scorer]) -> None:
    """Check that the scorers' chat templates accept the conversation."""
    conversation = turns(prompt.turns)
    for name, scorer in scorers.items() if conversation else ():
        reason = scorer.refusal(conversation or [])
        if reason is not None:
            raise unreadable(name, reason)
