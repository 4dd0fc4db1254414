"""One answer over an upstream, token by token."""

import uuid
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from trimtab.adapters.openai.client import Client
from trimtab.adapters.openai.guide_thread import GuideThread
from trimtab.adapters.openai.holdback import Holdback
from trimtab.adapters.openai.naming import Fit, Naming, UpstreamPrompt
from trimtab.adapters.openai.positions import NONE, Position
from trimtab.adapters.openai.sampling import TokenSampler, spread
from trimtab.engine import GenerationRequest, Piece, Record
from trimtab.errors import UpstreamFailed, scorer_failed
from trimtab.guide import Guide
from trimtab.params import GuidanceParams
from trimtab.records import spell
from trimtab.rows import Row
from trimtab.scorers.base import Scorer
from trimtab.scoring.text import PromptContext
from trimtab.scoring.turns import turns

CHARACTER = 4
"""Maximum tokens of one character: its maximum number of UTF-8 bytes."""


@dataclass(frozen=True)
class Upstream:
    """What all choices share."""

    guide: Guide
    naming: Naming
    client: Client
    thread: GuideThread
    block: int
    on_record: Callable[[Record | None], Any]


class Choice:
    """One answer in progress."""

    def __init__(
        self,
        upstream: Upstream,
        index: int,
        prompt: UpstreamPrompt,
        request: GenerationRequest,
        scorers: Mapping[str, Scorer],
    ) -> None:
        sampling = request.sampling
        stops = [sampling.stop] if isinstance(sampling.stop, str) else list(sampling.stop or ())
        self.upstream, self.naming = upstream, upstream.naming
        self.index, self.prompt = index, prompt
        self.sampling, self.params, self.timed = sampling, request.guidance, request.timed
        self.streams_trace = request.streams_trace
        self.key = uuid.uuid4().hex
        self.row = Row(
            request.guidance or GuidanceParams(beta=0.0),
            len(prompt.ids),
            record_key=self.key,
            context=PromptContext(prompt.answer_at, turns(prompt.turns)),
            scorers=scorers,
            max_tokens=sampling.max_tokens,
            prefix=np.array(prompt.ids, dtype=np.int64),
        )
        self.sampler = TokenSampler(sampling, index)
        self.holdback = Holdback(stops)
        self.output: list[int] = []
        self.unrevealed: list[float] = []  # probability mass, by step

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """The answer as it grows; see UpstreamEngine.generate for the errors."""
        follow = False
        try:
            await self.upstream.thread.run(self.upstream.guide.records.keep, self.row)
            while True:
                positions = await self._next_positions(follow)
                if not positions:
                    text = self._new_text("stop")
                    yield Piece(self.index, text, [], "stop", await self._record())
                    return
                for i, position in enumerate(positions):
                    token = await self._token(position, i + 1 < len(positions), follow)
                    follow = token is None
                    if token is None:
                        break
                    finish = self._finish(token)
                    text = self._new_text(finish)
                    finish = "stop" if self.holdback.stopped else finish
                    trace = await self._steps() if self.streams_trace else None
                    record = await self._record() if finish else None
                    yield Piece(self.index, text, [token], finish, record, trace=trace)
                    if finish:
                        return
                    if token != position.token:
                        break
        finally:
            self.upstream.thread.later(self.upstream.guide.records.pop, self.key)

    async def _token(self, position: Position, more: bool, follow: bool) -> int | None:
        """Sample the next token and append it to the output.

        A token that is part of a character can only be followed by the upstream's own tokens. If
        such a token is sampled, None requests a call with `follow`. After that call, the upstream's
        own part is taken if the next position is known (`more`); otherwise, another token is
        sampled.
        """
        sendable = self._sendable(position, parts=True)
        token = position.token if follow else await self._sample(sendable)
        if follow or self._is_part(token):
            if not follow and not more:
                return None
            token = position.token
            if not (more and self._is_part(token)):
                sendable = self._sendable(position, parts=False)
                token = await self._sample(sendable)
        self.output.append(token)
        self.unrevealed.append(sendable.unrevealed)
        return token

    async def _next_positions(self, follow: bool) -> list[Position]:
        """The next positions; none if the upstream has ended the answer.

        follow: request enough of the upstream's own tokens to complete a character. Part of a
        character cannot be sent: the text before it is sent, and the upstream must repeat the part.
        """
        output, tail = self.output, self.naming.tail(self.output)
        greedy = follow or tail > 0 or self.sampler.greedy
        tokens = self.upstream.block if self.sampler.greedy else 1
        tokens = min(tokens, self.sampling.max_tokens - len(output))
        if follow or tail:
            tokens = max(tokens, tail + CHARACTER)
        sent = output[: len(output) - tail]
        body = self.naming.body(self.prompt, sent, tokens, greedy)
        answer = await self.upstream.client.ask(self.naming.path, body, self.naming.read)
        before, after = answer.positions[:tail], answer.positions[tail:]
        if tail and ([p.token for p in before] != output[-tail:] or not after):
            raise UpstreamFailed("the upstream did not repeat its part of a character.")
        return after

    def _is_part(self, token: int) -> bool:
        return token != NONE and self.naming.fit(self.output, token) is Fit.PART

    def _sendable(self, position: Position, *, parts: bool) -> Position:
        """Only the tokens that complete characters, and with `parts`, those that begin one."""
        fits = {Fit.WHOLE, Fit.PART} if parts else {Fit.WHOLE}
        revealed = position.logprobs.items()
        kept = {v: logprob for v, logprob in revealed if self.naming.fit(self.output, v) in fits}
        if not kept:
            raise UpstreamFailed("the upstream's tokens do not make whole characters.")
        return Position(position.token, kept)

    async def _sample(self, position: Position) -> int:
        """One step of guidance: the sampled token."""
        row, revealed = self.row, len(position.logprobs)
        row.prefix = np.array([*self.prompt.ids, *self.output], dtype=np.int64)
        if self.params is not None:
            # Only revealed tokens can be candidates.
            k = revealed if self.params.k == "all" else min(self.params.k, revealed)
            fewer = {"k": k}
            row.params = self.params.model_copy(update=fewer)
        logits = spread(position, self.naming.columns, self.naming.closed)
        await self.upstream.thread.run(self.upstream.guide.step, logits, [(0, row)])
        if row.fault is not None and row.params.on_error == "fail":
            await self._record()
        tokens = list(position.logprobs)
        return self.sampler.sample(tokens, logits[0, tokens])

    def _finish(self, token: int) -> str | None:
        if self._ends(token):
            return "stop"
        length = len(self.output)
        full = len(self.prompt.ids) + length >= self.naming.length
        return "length" if length >= self.sampling.max_tokens or full else None

    def _ends(self, token: int) -> bool:
        end = token in self.naming.ends and not self.sampling.ignore_eos
        return end or token in (self.sampling.stop_token_ids or ())

    def _new_text(self, finish: str | None) -> str:
        """The new text to send, without the end token."""
        ended = finish == "stop" and len(self.output) > 0 and self._ends(self.output[-1])
        output = self.output[:-1] if ended else self.output
        return self.holdback.update(self.naming.text(self.prompt, output), finish is not None)

    async def _record(self) -> Record | None:
        """The record of the choice, which has ended.

        Raises:
            ScorerFault: a scorer failed, and `on_error` is `fail`.
        """
        if self.params is None:
            return None
        report = self.upstream.guide.records.report
        [record] = await self.upstream.thread.run(
            report, self.key, self.prompt.ids, [self.output], True, True, self.timed
        )
        self.upstream.on_record(record)
        if record is None:
            return None
        error = record["error"]
        if error is not None and self.params.on_error == "fail":
            raise scorer_failed(error["scorer"], error["message"])
        steps = self.unrevealed
        record["unrevealed"] = sum(steps) / max(len(steps), 1)
        self._describe(record.get("trace"))
        return record

    async def _steps(self) -> list[dict[str, Any]] | None:
        """The trace of the last token."""
        steps, at = self.upstream.guide.records.steps, len(self.output) - 1
        [trace] = await self.upstream.thread.run(
            steps, self.key, self.prompt.ids, [self.output], [at]
        )
        self._describe(trace)
        return trace

    def _describe(self, trace: list[dict[str, Any]] | None) -> None:
        """Add what the guide does not know: texts, and the mass of unrevealed tokens."""
        spell(trace, lambda token: self.naming.decode([token]))
        for step in trace or ():
            step["unrevealed"] = self.unrevealed[step["position"]]
