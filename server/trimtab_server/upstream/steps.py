"""The decode loop: what is revealed is guided, a token is drawn, and the longer text is asked on.

    upstream → alternatives of the next token → candidates, scores, fusion → a token → upstream …

Everything that touches the scorers runs in one thread of its own, so the event loop never waits.
"""

import asyncio
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from trimtab.description import describe
from trimtab.guide import Guide
from trimtab.params import GuidanceParams
from trimtab.rows import Row
from trimtab.scoring.text import PromptContext
from trimtab_server import metrics
from trimtab_server.errors import UpstreamFailed, UpstreamTimeout, scorer_failed, unreadable
from trimtab_server.protocol import GenerateRequest
from trimtab_server.settings import Settings
from trimtab_server.turns import turns
from trimtab_server.upstream.client import Client
from trimtab_server.upstream.holdback import Shown
from trimtab_server.upstream.naming import NONE, Fit, Naming, Position, UpstreamPrompt
from trimtab_server.upstream.sampling import TokenSampler, spread

CHARACTER = 4
"""Tokens that one character may take: it has at most as many bytes."""
Record = dict[str, Any]
T = TypeVar("T")


@dataclass
class Piece:
    """What is new of one choice; the last has a finish reason."""

    index: int
    text: str
    token_ids: list[int]
    finish_reason: str | None = None
    record: Record | None = None


@dataclass
class Choice:
    """One answer on its way."""

    prompt: UpstreamPrompt
    asked: GenerateRequest
    params: GuidanceParams | None
    row: Row
    sampler: TokenSampler
    shown: Shown
    output: list[int] = field(default_factory=list)
    unrevealed: list[float] = field(default_factory=list)  # probability, by step


class UpstreamDecoder:
    """Scorers, an upstream, and how its tokens are named."""

    def __init__(self, guide: Guide, naming: Naming, client: Client, settings: Settings) -> None:
        self.guide, self.naming, self.client = guide, naming, client
        self.block, self.deadline = settings.upstream_block, settings.upstream_deadline
        self.thread = ThreadPoolExecutor(1, "guide")

    async def run(
        self,
        prompts: Sequence[UpstreamPrompt],
        asked: GenerateRequest,
        params: GuidanceParams | None,
    ) -> AsyncGenerator[Piece, None]:
        """The choices of all prompts as they grow, side by side; choice i of prompt p is p·n + i.

        params: with scorers resolved; None is the base, without records.

        Raises:
            UpstreamFailed, UpstreamTimeout: see Client.ask; or the deadline has passed.
            ScorerFault: a scorer failed, and `on_error` is `fail`.
            InvalidRequest: a scorer's chat template refuses a conversation.
        """
        pieces: asyncio.Queue[Piece | Exception] = asyncio.Queue()

        async def work(index: int) -> None:
            prompt, number = prompts[index // asked.n], index % asked.n
            try:
                async with asyncio.timeout(self.deadline):
                    async for piece in self._choice(index, prompt, number, asked, params):
                        pieces.put_nowait(piece)
            except TimeoutError:
                message = f"the answer was not whole after {self.deadline:g} seconds."
                pieces.put_nowait(UpstreamTimeout(message))
            except Exception as error:
                pieces.put_nowait(error)

        tasks: list[asyncio.Task[None]] = []
        try:
            if params is not None:
                await self._guided(self._check, prompts, params)
            tasks += [asyncio.create_task(work(index)) for index in range(len(prompts) * asked.n)]
            left = len(tasks)
            while left:
                piece = await pieces.get()
                if isinstance(piece, Exception):
                    raise piece
                left -= piece.finish_reason is not None
                yield piece
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for prompt in prompts:
                self._later(self.naming.release, prompt)

    async def described(self) -> list[dict[str, Any]]:
        """What is served, and how it fares."""
        return await self._guided(describe, self.guide)

    def _check(self, prompts: Sequence[UpstreamPrompt], params: GuidanceParams) -> None:
        """Let the scorers' chat templates render the conversations before anything is asked."""
        conversations = [turns(prompt.turns) for prompt in prompts]
        for name in params.scorers or ():
            for conversation in filter(None, conversations):
                reason = self.guide.registry.scorers[name].refusal(conversation)
                if reason is not None:
                    raise unreadable(name, reason)

    async def close(self) -> None:
        """Let go of the upstream and of the thread."""
        self.thread.shutdown(cancel_futures=True)
        await self.client.close()

    async def _choice(
        self,
        index: int,
        prompt: UpstreamPrompt,
        number: int,
        asked: GenerateRequest,
        params: GuidanceParams | None,
    ) -> AsyncGenerator[Piece, None]:
        key = uuid.uuid4().hex
        row = Row(
            params or GuidanceParams(beta=0.0),
            len(prompt.ids),
            record_key=key,
            context=PromptContext(turns=turns(prompt.turns)),
            prefix=np.array(prompt.ids, dtype=np.int64),
        )
        stops = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
        choice = Choice(prompt, asked, params, row, TokenSampler(asked, number), Shown(stops))
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
        """The next token of a choice, which now has it.

        Where half a character is drawn, the upstream must be followed through it: None asks for
        that. It has been where `follow`; then its own half is taken if what comes after is known
        (`on`), else another token is drawn.
        """
        seen = self._sendable(choice, position, halves=True)
        token = position.token if follow else await self._decide(choice, seen)
        if follow or self._half(choice, token):
            if not follow and not on:
                return None
            token = position.token
            if not (on and self._half(choice, token)):
                seen = self._sendable(choice, position, halves=False)
                token = await self._decide(choice, seen)
        choice.output.append(token)
        choice.unrevealed.append(seen.unrevealed)
        return token

    async def _ask(self, choice: Choice, follow: bool) -> list[Position]:
        """The next positions; none if the upstream has ended the answer.

        follow: whether enough of the upstream's own tokens are wanted to make a character. Half of
        one cannot be sent, so the text before it is, and the upstream must say it again.
        """
        output, tail = choice.output, self.naming.tail(choice.output)
        greedy = follow or tail > 0 or choice.sampler.greedy
        wanted = self.block if choice.sampler.greedy else 1
        wanted = min(wanted, choice.asked.max_tokens - len(output))
        if follow or tail:
            wanted = max(wanted, tail + CHARACTER)
        sent = output[: len(output) - tail]
        body = self.naming.body(choice.prompt, sent, wanted, greedy)
        answer = await self.client.ask(self.naming.path, body, self.naming.read)
        before, after = answer.positions[:tail], answer.positions[tail:]
        if tail and ([p.token for p in before] != output[-tail:] or not after):
            raise UpstreamFailed("the upstream did not go on from half a character as it did.")
        return after

    def _half(self, choice: Choice, token: int) -> bool:
        return token != NONE and self.naming.fit(choice.output, token) is Fit.PART

    def _sendable(self, choice: Choice, position: Position, *, halves: bool) -> Position:
        """Without tokens that make no text; with half characters, or without."""
        fits = {Fit.WHOLE, Fit.PART} if halves else {Fit.WHOLE}
        revealed = position.logprobs.items()
        kept = {v: logprob for v, logprob in revealed if self.naming.fit(choice.output, v) in fits}
        if not kept:
            raise UpstreamFailed("the upstream's tokens do not make whole characters.")
        return Position(position.token, kept)

    async def _decide(self, choice: Choice, position: Position) -> int:
        """One step of guidance, and the token that is drawn from it."""
        row, revealed = choice.row, len(position.logprobs)
        row.prefix = np.array([*choice.prompt.ids, *choice.output], dtype=np.int64)
        if choice.params is not None:
            # What was not revealed can be no candidate.
            fewer = {"k": min(choice.params.k, revealed)}
            row.params = choice.params.model_copy(update=fewer)
        logits = spread(position, self.naming.columns, self.naming.closed)
        await self._guided(self.guide.step, logits, [(0, row)])
        if row.fault is not None and row.params.on_error == "fail":
            await self._end(choice)
        tokens = list(position.logprobs)
        return choice.sampler.draw(tokens, logits[0, tokens])

    def _finish(self, choice: Choice, token: int) -> str | None:
        asked, length = choice.asked, len(choice.output)
        if token in self.naming.ends and not asked.ignore_eos:
            return "stop"
        if token in (asked.stop_token_ids or ()):
            return "stop"
        whole = len(choice.prompt.ids) + length >= self.naming.length
        return "length" if length >= asked.max_tokens or whole else None

    def _grow(self, choice: Choice, finish: str | None) -> str:
        """What is new to show; the token that ends an answer is not."""
        ended = finish == "stop" and len(choice.output) > 0 and self._ends(choice)
        output = choice.output[:-1] if ended else choice.output
        return choice.shown.grow(self.naming.text(choice.prompt, output), finish is not None)

    def _ends(self, choice: Choice) -> bool:
        last = choice.output[-1]
        eos = last in self.naming.ends and not choice.asked.ignore_eos
        return eos or last in (choice.asked.stop_token_ids or ())

    async def _end(self, choice: Choice) -> Record | None:
        """The record of a choice that has ended.

        Raises:
            ScorerFault: a scorer failed, and `on_error` is `fail`.
        """
        if choice.params is None:
            return None
        asked = str(choice.row.record_key), choice.prompt.ids, [choice.output], True
        [record] = await self._guided(self.guide.records.report, *asked)
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

    async def _guided(self, work: Callable[..., T], *given: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.thread, work, *given)

    def _later(self, work: Callable[..., Any], *given: Any) -> None:
        """After the thread's present work, which may still read what is to be forgotten."""
        with suppress(RuntimeError):  # the server is going down
            self.thread.submit(work, *given)
