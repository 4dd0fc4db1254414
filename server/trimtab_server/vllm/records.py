"""Records: how the server gets the record of each guided choice from the worker.

1. A route or the middleware opens an Exchange for its HTTP request (a context variable).
2. The engine client is a `Recording`: each guided call gets its own record key.
3. When a choice ends, its record is fetched from the worker before the choice is passed on.
4. The route or middleware writes the Exchange's records into the answer.

An Exchange also pins the scorer versions that its request began with. They are sent with the record
key, and stay in use until the HTTP request ends.
"""

import asyncio
import copy
import time
import uuid
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from vllm.engine.protocol import EngineClient
from vllm.exceptions import GenerationError
from vllm.sampling_params import RequestOutputKind

from trimtab.adapters.vllm import beside
from trimtab.adapters.vllm.ranks import first_answer
from trimtab.adapters.vllm.search import carried
from trimtab.engine import Record, Version
from trimtab.errors import InvalidGuidance, TrimtabError, scorer_failed, unreadable
from trimtab.params import GuidanceParams
from trimtab.records import spell
from trimtab.scoring.text import PromptContext, Turns
from trimtab.scoring.turns import CONVERSING
from trimtab.xargs import PREFIX, RECORD_KEY, VERSIONS_KEY, from_xargs
from trimtab_server import metrics, tracing
from trimtab_server.vllm import rpc
from trimtab_server.vllm.token_texts import TokenTexts


@dataclass
class Exchange:
    """Records and scorer versions of one HTTP request."""

    calls: list[dict[int, Record | None]] = field(default_factory=list)
    """Records by choice index, one mapping per engine call (one call per prompt), in order."""
    fault: TrimtabError | None = None
    """The error of the request: a scorer failed, or the worker does not answer."""
    versions: Sequence[Version] = ()
    """The versions of its scorers; empty: the current ones."""
    contexts: Sequence[PromptContext] = ()
    """Contexts of the prompts for scorers that read text, by engine call."""
    timed: bool = False
    """Whether its records keep the seconds of the scorers, for whoever opened it."""
    streams_trace: bool = False
    """Whether each output of the engine comes with the trace of its tokens."""
    traces: dict[int, list[dict[str, Any]] | None] = field(default_factory=dict)
    """Those of the last output, by choice index."""

    @property
    def carried(self) -> dict[str, str]:
        """Versions and the next call's prompt context, as extra arguments for the worker."""
        keys = ",".join(version.key for version in self.versions)
        prompt = (
            self.contexts[len(self.calls)]
            if len(self.calls) < len(self.contexts)
            else PromptContext()
        )
        return carried(prompt) | ({VERSIONS_KEY: keys} if keys else {})

    @property
    def reading(self) -> list[Version]:
        """The versions that may read conversations."""
        return [version for version in self.versions if version.reads in CONVERSING]

    @property
    def records(self) -> list[Record | None]:
        """The records of all choices that have ended, by engine call."""
        return [record for call in self.calls for record in call.values()]

    def record(self, call: int, choice: int) -> Record | None:
        """The record of one choice; None if the worker kept none."""
        return self.calls[call].get(choice) if call < len(self.calls) else None


EXCHANGE: ContextVar[Exchange | None] = ContextVar("trimtab_exchange", default=None)
IN_USE: ContextVar[list[Version]] = ContextVar("trimtab_in_use")


@contextmanager
def using_versions() -> Iterator[None]:
    """Keep the versions of an HTTP request's exchanges in use until it ends."""
    versions: list[Version] = []
    IN_USE.set(versions)
    try:
        yield
    finally:
        for version in versions:
            version.users -= 1


def begin(scorers: Mapping[str, Version], guidance: GuidanceParams) -> Exchange:
    """Open the exchange of a request; its scorers are in `scorers`."""
    exchange = Exchange(versions=[scorers[name] for name in guidance.scorers or {}])
    for version in exchange.versions:
        version.users += 1
    IN_USE.get().extend(exchange.versions)
    EXCHANGE.set(exchange)
    return exchange


async def converse(
    engine: EngineClient, exchange: Exchange, conversations: Sequence[Turns | None]
) -> None:
    """Pass the conversations of a request's engine calls, in order, to scorers that read them.

    Raises:
        InvalidRequest: a scorer cannot read one of them.
        NotReady, TrimtabError: see rpc.call.
    """
    known = [turns for turns in conversations if turns is not None]
    if not exchange.reading or not known:
        return
    exchange.contexts = [PromptContext(turns=turns) for turns in conversations]
    keys = [version.key for version in exchange.reading]
    refusal = first_answer(await rpc.call(engine, "trimtab_refusal", keys, known))
    if refusal:
        raise unreadable(*refusal)


class Recording:
    """A mixin for vLLM's engine client: fetches records for guided calls of an open Exchange.

    The server uses `class RecordingLLM(Recording, AsyncLLM)`.
    """

    def generate(
        self, prompt: Any, sampling_params: Any, request_id: str, **options: Any
    ) -> AsyncGenerator[Any, None]:
        """vLLM's generate; also stores the request's records.

        Raises:
            InvalidGuidance: the request is guided, and no route has opened an Exchange for it; or
            its principles have no room.
        """
        generate: Any = super().generate  # type: ignore[misc]
        if tracing.on():
            options["trace_headers"] = tracing.headers()
        exchange, extra = EXCHANGE.get(), getattr(sampling_params, "extra_args", None) or {}
        guidance = from_xargs(extra)
        if exchange is None and any(key.startswith(PREFIX) for key in extra):
            raise InvalidGuidance(f"this route is not guided; leave {PREFIX}* keys out.")
        if exchange is None or guidance is None:
            outputs: AsyncGenerator[Any, None] = generate(
                prompt, sampling_params, request_id, **options
            )
            return outputs
        arguments = exchange.carried  # before _Call adds itself to the exchange
        engine: Any = self
        if guidance.said:
            beside.check(sampling_params)
            ids = prompt.get("prompt_token_ids") if isinstance(prompt, Mapping) else None
            tokenizer, config = engine.get_tokenizer(), engine.vllm_config
            arguments |= beside.carried(guidance, ids, tokenizer, config)
        call = _Call(engine, exchange, guidance)
        params = copy.copy(sampling_params)
        params.extra_args = {**extra, RECORD_KEY: call.key, **arguments}
        outputs = generate(prompt, params, request_id, **options)
        return call.follow(outputs, params.output_kind == RequestOutputKind.DELTA)


_background: set[asyncio.Task[Any]] = set()
"""Running calls that make the worker forget a record; not awaited."""


class _Call:
    """One guided engine call, and the records of its choices."""

    def __init__(self, engine: EngineClient, exchange: Exchange, guidance: GuidanceParams) -> None:
        self.engine = engine
        self.key = uuid.uuid4().hex
        self.exchange = exchange
        self.guidance = guidance
        self.begun = time.time_ns()
        self.records: dict[int, Record | None] = {}
        exchange.calls.append(self.records)
        self.prompt: list[int] = []
        self.tokens: dict[int, list[int]] = {}
        self.texts: dict[int, str] = TokenTexts(engine.get_tokenizer()) if guidance.trace else {}

    async def follow(self, outputs: Any, delta: bool) -> AsyncGenerator[Any, None]:
        """Forward outputs, each after the records of its ended choices have arrived."""
        done = False
        try:
            async for output in outputs:
                self.prompt = self.prompt or list(output.prompt_token_ids or ())
                ended = []
                for choice in output.outputs:
                    kept = self.tokens.setdefault(choice.index, [])
                    if not delta:
                        kept.clear()
                    kept.extend(choice.token_ids)
                    if choice.finish_reason is not None and choice.index not in self.records:
                        ended.append(choice.index)
                if self.exchange.streams_trace:
                    await self._follow_trace(output.outputs)
                if ended:
                    await self._fetch(ended, output.finished)
                    done = output.finished
                yield output
        finally:
            await outputs.aclose()
            if not done:
                # Cancelled or failed: let the worker forget, without awaiting it here.
                task = asyncio.ensure_future(self._report([], True))
                _background.add(task)
                task.add_done_callback(self._forgotten)

    async def _follow_trace(self, choices: Sequence[Any]) -> None:
        """Fetch the trace of each choice's new tokens."""
        grown = [choice for choice in choices if choice.token_ids]
        outputs = [self.tokens[choice.index] for choice in grown]
        starts = [len(self.tokens[choice.index]) - len(choice.token_ids) for choice in grown]
        arguments = self.key, self.prompt, outputs, starts
        try:
            answers = await rpc.call(self.engine, "trimtab_steps", *arguments)
        except TrimtabError as error:
            self.exchange.fault = error
            raise GenerationError(error.message) from None
        traces = next((t for t in answers if any(t or ())), [None] * len(grown))
        for choice, trace in zip(grown, traces, strict=True):
            spell(trace, self.texts.__getitem__)
            self.exchange.traces[choice.index] = trace

    async def _report(self, outputs: list[list[int]], done: bool) -> list[Record | None]:
        arguments = self.key, self.prompt, outputs, done, True, tracing.on()
        answers = await rpc.call(self.engine, "trimtab_record", *arguments)
        return next(
            (records for records in answers if any(records or ())), first_answer(answers) or []
        )

    async def _fetch(self, ended: list[int], done: bool) -> None:
        try:
            records = await self._report([self.tokens[index] for index in ended], done)
        except TrimtabError as error:
            self.exchange.fault = error
            raise GenerationError(error.message) from None
        numbers = {version.name: version.number for version in self.exchange.versions}
        for index, record in zip(ended, records, strict=True):
            if record is not None and any(number > 1 for number in numbers.values()):
                record["versions"] = numbers
            spell((record or {}).get("trace"), self.texts.__getitem__)
            self.records[index] = record
            fault = metrics.observe(record)
            fails = fault is not None and self.guidance.on_error == "fail"
            if fails or not self.exchange.timed:
                tracing.choice(self.begun, self.guidance, record)
            if fault is not None and fails:
                self.exchange.fault = scorer_failed(fault["scorer"], fault["message"])
                raise GenerationError(self.exchange.fault.message)

    def _forgotten(self, task: asyncio.Task[Any]) -> None:
        _background.discard(task)
        if not task.cancelled():
            task.exception()  # retrieved, so that asyncio does not log it
