"""The decode loop over an upstream: guide the revealed tokens, sample one, send the longer prefix.

    upstream → alternatives of the next token → candidates, scores, fusion → a token → upstream …

All calls to the scorers run in one separate thread, so the event loop never waits for them.
"""

import asyncio
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from trimtab.config import ScorerSpec
from trimtab.description import describe
from trimtab.engine import GenerationRequest, Piece, Record, Sampling, ScorerStatus
from trimtab.errors import InvalidRequest, NotReady, ScorerRefused
from trimtab.guide import Guide
from trimtab.params import GuidanceParams
from trimtab.rows import Row
from trimtab.scorers.base import Scorer
from trimtab.scoring.text import PromptContext
from trimtab_server import metrics
from trimtab_server.errors import UpstreamFailed, UpstreamTimeout, scorer_failed, unreadable
from trimtab_server.settings import Settings
from trimtab_server.turns import turns
from trimtab_server.upstream.client import Client
from trimtab_server.upstream.holdback import Shown
from trimtab_server.upstream.naming import NONE, Fit, Naming, Position, UpstreamPrompt
from trimtab_server.upstream.sampling import TokenSampler, spread

GREETING = "Hello"
CHARACTER = 4
"""Maximum tokens of one character: its maximum number of UTF-8 bytes."""
T = TypeVar("T")


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


@dataclass
class Choice:
    """One answer in progress."""

    prompt: UpstreamPrompt
    sampling: Sampling
    params: GuidanceParams | None
    row: Row
    sampler: TokenSampler
    shown: Shown
    output: list[int] = field(default_factory=list)
    unrevealed: list[float] = field(default_factory=list)  # probability mass, by step


class UpstreamEngine:
    """Scorers over an upstream; `naming` identifies its tokens. See trimtab.engine.Engine."""

    def __init__(self, guide: Guide, naming: Naming, client: Client, settings: Settings) -> None:
        self.guide, self.naming, self.client = guide, naming, client
        self.block, self.deadline = settings.upstream_block, settings.upstream_deadline
        self.thread = ThreadPoolExecutor(1, "guide")
        self.model = str(settings.upstream_model)
        self.patience = self.deadline
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
        pieces: asyncio.Queue[Piece | Exception] = asyncio.Queue()

        async def work(index: int) -> None:
            try:
                async with asyncio.timeout(self.deadline):
                    async for piece in self._choice(index, prompt, request, scorers):
                        pieces.put_nowait(piece)
            except TimeoutError:
                message = f"the answer was not whole after {self.deadline:g} seconds."
                pieces.put_nowait(UpstreamTimeout(message))
            except Exception as error:
                pieces.put_nowait(error)

        tasks: list[asyncio.Task[None]] = []
        try:
            scorers = self.guide.registry.pinned(request)
            await self._guided(_check_conversation, prompt, scorers)
            tasks += [asyncio.create_task(work(index)) for index in range(request.sampling.n)]
            left = len(tasks)
            while left:
                piece = await pieces.get()
                if isinstance(piece, Exception):
                    raise piece
                left -= piece.finish_reason is not None
                piece.prompt_tokens = len(prompt.ids)
                yield piece
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._later(self.naming.release, prompt)

    def _check(self, request: GenerationRequest) -> None:
        """Refuse fields that an upstream does not support."""
        if request.search is not None:
            raise InvalidRequest(
                "an upstream cannot be searched; leave search out.", param="search"
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

    async def scorers(self, seconds: float) -> list[ScorerStatus]:
        """See Engine.scorers."""
        try:
            return await asyncio.wait_for(self._guided(describe, self.guide), seconds)
        except TimeoutError:
            raise NotReady("the scorers do not answer: one of them takes long.") from None

    def problem(self) -> str | None:
        """See Engine.problem."""
        return "the upstream fails" if self.client.failing else None

    async def load(self, version: str, spec: ScorerSpec, root: Path) -> Mapping[str, Any]:
        """Not supported: an upstream server keeps the scorers that it started with."""
        raise ScorerRefused("a server over an upstream does not load scorers while it serves.")

    async def serve(self, name: str, version: str | None) -> None:
        """See Engine.serve."""
        await self._guided(self.guide.registry.serve, name, version)

    async def drop(self, version: str) -> None:
        """See Engine.drop."""
        await self._guided(self.guide.registry.versions.pop, version, None)

    async def close(self) -> None:
        """Close the upstream's connections and the thread."""
        self.thread.shutdown(cancel_futures=True)
        await self.client.close()

    async def _choice(
        self,
        index: int,
        prompt: UpstreamPrompt,
        request: GenerationRequest,
        scorers: Mapping[str, Scorer],
    ) -> AsyncGenerator[Piece, None]:
        sampling, params = request.sampling, request.guidance
        key = uuid.uuid4().hex
        row = Row(
            params or GuidanceParams(beta=0.0),
            len(prompt.ids),
            record_key=key,
            context=PromptContext(turns=turns(prompt.turns)),
            scorers=scorers,
            prefix=np.array(prompt.ids, dtype=np.int64),
        )
        stops = [sampling.stop] if isinstance(sampling.stop, str) else list(sampling.stop or ())
        choice = Choice(prompt, sampling, params, row, TokenSampler(sampling, index), Shown(stops))
        follow = False
        try:
            await self._guided(self.guide.records.keep, row)
            while True:
                positions = await self._ask(choice, follow)
                if not positions:
                    text = self._grow(choice, "stop")
                    yield Piece(index, text, [], "stop", await self._end(choice))
                    return
                for i, position in enumerate(positions):
                    token = await self._token(choice, position, i + 1 < len(positions), follow)
                    follow = token is None
                    if token is None:
                        break
                    finish = self._finish(choice, token)
                    text = self._grow(choice, finish)
                    finish = "stop" if choice.shown.stopped else finish
                    record = await self._end(choice) if finish else None
                    yield Piece(index, text, [token], finish, record)
                    if finish:
                        return
                    if token != position.token:
                        break
        finally:
            self._later(self.guide.records.pop, key)

    async def _token(
        self, choice: Choice, position: Position, on: bool, follow: bool
    ) -> int | None:
        """Sample the next token of a choice and append it to the output.

        A token that is part of a character can only be followed by the upstream's own tokens. If
        such a token is sampled, None requests a call with `follow`. After that call, the upstream's
        own part is taken if the next position is known (`on`); otherwise, another token is sampled.
        """
        seen = self._sendable(choice, position, parts=True)
        token = position.token if follow else await self._decide(choice, seen)
        if follow or self._is_part(choice, token):
            if not follow and not on:
                return None
            token = position.token
            if not (on and self._is_part(choice, token)):
                seen = self._sendable(choice, position, parts=False)
                token = await self._decide(choice, seen)
        choice.output.append(token)
        choice.unrevealed.append(seen.unrevealed)
        return token

    async def _ask(self, choice: Choice, follow: bool) -> list[Position]:
        """The next positions; none if the upstream has ended the answer.

        follow: request enough of the upstream's own tokens to complete a character. Part of a
        character cannot be sent: the text before it is sent, and the upstream must repeat the part.
        """
        output, tail = choice.output, self.naming.tail(choice.output)
        greedy = follow or tail > 0 or choice.sampler.greedy
        wanted = self.block if choice.sampler.greedy else 1
        wanted = min(wanted, choice.sampling.max_tokens - len(output))
        if follow or tail:
            wanted = max(wanted, tail + CHARACTER)
        sent = output[: len(output) - tail]
        body = self.naming.body(choice.prompt, sent, wanted, greedy)
        answer = await self.client.ask(self.naming.path, body, self.naming.read)
        before, after = answer.positions[:tail], answer.positions[tail:]
        if tail and ([p.token for p in before] != output[-tail:] or not after):
            raise UpstreamFailed("the upstream did not repeat its part of a character.")
        return after

    def _is_part(self, choice: Choice, token: int) -> bool:
        return token != NONE and self.naming.fit(choice.output, token) is Fit.PART

    def _sendable(self, choice: Choice, position: Position, *, parts: bool) -> Position:
        """Only the tokens that complete characters, and with `parts`, those that begin one."""
        fits = {Fit.WHOLE, Fit.PART} if parts else {Fit.WHOLE}
        revealed = position.logprobs.items()
        kept = {v: logprob for v, logprob in revealed if self.naming.fit(choice.output, v) in fits}
        if not kept:
            raise UpstreamFailed("the upstream's tokens do not make whole characters.")
        return Position(position.token, kept)

    async def _decide(self, choice: Choice, position: Position) -> int:
        """One step of guidance: the sampled token."""
        row, revealed = choice.row, len(position.logprobs)
        row.prefix = np.array([*choice.prompt.ids, *choice.output], dtype=np.int64)
        if choice.params is not None:
            # Only revealed tokens can be candidates.
            fewer = {"k": min(choice.params.k, revealed)}
            row.params = choice.params.model_copy(update=fewer)
        logits = spread(position, self.naming.columns, self.naming.closed)
        await self._guided(self.guide.step, logits, [(0, row)])
        if row.fault is not None and row.params.on_error == "fail":
            await self._end(choice)
        tokens = list(position.logprobs)
        return choice.sampler.draw(tokens, logits[0, tokens])

    def _finish(self, choice: Choice, token: int) -> str | None:
        sampling, length = choice.sampling, len(choice.output)
        if token in self.naming.ends and not sampling.ignore_eos:
            return "stop"
        if token in (sampling.stop_token_ids or ()):
            return "stop"
        whole = len(choice.prompt.ids) + length >= self.naming.length
        return "length" if length >= sampling.max_tokens or whole else None

    def _grow(self, choice: Choice, finish: str | None) -> str:
        """The new text to send, without the end token."""
        ended = finish == "stop" and len(choice.output) > 0 and self._ends(choice)
        output = choice.output[:-1] if ended else choice.output
        return choice.shown.grow(self.naming.text(choice.prompt, output), finish is not None)

    def _ends(self, choice: Choice) -> bool:
        last = choice.output[-1]
        eos = last in self.naming.ends and not choice.sampling.ignore_eos
        return eos or last in (choice.sampling.stop_token_ids or ())

    async def _end(self, choice: Choice) -> Record | None:
        """The record of a choice that has ended.

        Raises:
            ScorerFault: a scorer failed, and `on_error` is `fail`.
        """
        if choice.params is None:
            return None
        arguments = str(choice.row.record_key), choice.prompt.ids, [choice.output], True
        [record] = await self._guided(self.guide.records.report, *arguments)
        error = metrics.observe(record)
        if record is None:
            return None
        if error is not None and choice.params.on_error == "fail":
            raise scorer_failed(error)
        steps = choice.unrevealed
        record["unrevealed"] = sum(steps) / max(len(steps), 1)
        for step in record.get("trace") or ():
            step["unrevealed"] = steps[step["position"]]
            if not self.naming.closed:
                step["texts"] = [self.naming.decode([token]) for token in step["candidates"]]
        return record

    async def _guided(self, work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.thread, work, *arguments)

    def _later(self, work: Callable[..., Any], *arguments: Any) -> None:
        """Call `work` after the thread's current work, which may still use the data."""
        with suppress(RuntimeError):  # the server is stopping
            self.thread.submit(work, *arguments)


def _check_conversation(prompt: UpstreamPrompt, scorers: Mapping[str, Scorer]) -> None:
    """Check that the scorers' chat templates accept the conversation."""
    conversation = turns(prompt.turns)
    for name, scorer in scorers.items() if conversation else ():
        reason = scorer.refusal(conversation or [])
        if reason is not None:
            raise unreadable(name, reason)
