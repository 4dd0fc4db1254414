"""Records: how the front end learns what guidance did to a request.

1. A route or the middleware opens an Exchange for its HTTP request (a context variable).
2. The engine is a `Recording` one: each guided call gets a record key of its own.
3. When a choice ends, its record is fetched from the worker before the choice is passed on.
4. The Exchange holds the records; whoever opened it puts them in the answer.

An Exchange also holds the versions of the scorers that its request began with, whatever is loaded
meanwhile: they travel with the record key, and are in use until the HTTP request has ended.
"""

import asyncio
import copy
import uuid
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from vllm.engine.protocol import EngineClient
from vllm.exceptions import GenerationError
from vllm.sampling_params import RequestOutputKind

from trimtab.adapters.vllm.ranks import first_answer
from trimtab.adapters.vllm.search import carried
from trimtab.engine import Version
from trimtab.errors import InvalidGuidance, TrimtabError
from trimtab.params import PREFIX, RECORD_KEY, VERSIONS_KEY, GuidanceParams
from trimtab.scoring.text import PromptContext, Turns
from trimtab_server import metrics
from trimtab_server.errors import scorer_failed, unreadable
from trimtab_server.vllm import rpc

Record = dict[str, Any]


@dataclass
class Exchange:
    """What one HTTP request learns from the engine."""

    calls: list[dict[int, Record | None]] = field(default_factory=list)
    """Records by choice index, one mapping per engine call (one call per prompt), in order."""
    fault: TrimtabError | None = None
    """Why it fails: a scorer did, or the worker does not answer."""
    versions: Sequence[Version] = ()
    """Those of its scorers that it began with; the present ones where none is named."""
    contexts: Sequence[PromptContext] = ()
    """What scorers that read text should know of the prompts, by engine call."""

    @property
    def carried(self) -> dict[str, str]:
        """Versions and the next call's prompt, as extra arguments carry them to the worker."""
        keys = ",".join(version.key for version in self.versions)
        prompt = (
            self.contexts[len(self.calls)]
            if len(self.calls) < len(self.contexts)
            else PromptContext()
        )
        return carried(prompt) | ({VERSIONS_KEY: keys} if keys else {})

    @property
    def reading(self) -> list[Version]:
        """The versions that read conversations."""
        return [version for version in self.versions if version.reads == "chat"]

    def record(self, call: int, choice: int) -> Record | None:
        """The record of one choice; None if the worker kept none."""
        return self.calls[call].get(choice) if call < len(self.calls) else None


EXCHANGE: ContextVar[Exchange | None] = ContextVar("trimtab_exchange", default=None)
IN_USE: ContextVar[list[Version]] = ContextVar("trimtab_in_use")


@contextmanager
def using_versions() -> Iterator[None]:
    """The time of an HTTP request: what its exchanges begin with is in use until it ends."""
    versions: list[Version] = []
    IN_USE.set(versions)
    try:
        yield
    finally:
        for version in versions:
            version.users -= 1


def begin(scorers: Mapping[str, Version], guidance: GuidanceParams) -> Exchange:
    """Open the exchange of a request whose scorers were just found among `scorers`."""
    exchange = Exchange(versions=[scorers[name] for name in guidance.scorers or {}])
    for version in exchange.versions:
        version.users += 1
    IN_USE.get().extend(exchange.versions)
    EXCHANGE.set(exchange)
    return exchange


async def converse(
    engine: EngineClient, exchange: Exchange, conversations: Sequence[Turns | None]
) -> None:
    """Let scorers that read conversations have those of a request's engine calls, in order.

    Raises:
        InvalidRequest: a scorer's chat template refuses one of them.
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
    """A mixin over vLLM's engine client: guided calls of an open Exchange leave records.

    `class RecordingLLM(Recording, AsyncLLM)` is what serves.
    """

    def generate(
        self, prompt: Any, sampling_params: Any, request_id: str, **options: Any
    ) -> AsyncGenerator[Any, None]:
        """As vLLM's, with the request's records.

        Raises:
            InvalidGuidance: the request is guided, and no route has opened an Exchange for it.
        """
        generate: Any = super().generate  # type: ignore[misc]
        exchange, extra = EXCHANGE.get(), getattr(sampling_params, "extra_args", None) or {}
        guidance = GuidanceParams.from_xargs(extra)
        if exchange is None and any(key.startswith(PREFIX) for key in extra):
            raise InvalidGuidance(f"this route is not guided; leave {PREFIX}* keys out.")
        if exchange is None or guidance is None:
            outputs: AsyncGenerator[Any, None] = generate(
                prompt, sampling_params, request_id, **options
            )
            return outputs
        arguments = exchange.carried  # before the call is one of the exchange
        call = _Call(self, exchange, guidance)
        params = copy.copy(sampling_params)
        params.extra_args = {**extra, RECORD_KEY: call.key, **arguments}
        outputs = generate(prompt, params, request_id, **options)
        return call.follow(outputs, params.output_kind == RequestOutputKind.DELTA)


_background: set[asyncio.Task[Any]] = set()
"""Calls that let the worker forget, and that nobody awaits."""


class _Call:
    """One guided engine call, and the records of its choices."""

    def __init__(self, engine: EngineClient, exchange: Exchange, guidance: GuidanceParams) -> None:
        self.engine = engine
        self.key = uuid.uuid4().hex
        self.exchange = exchange
        self.guidance = guidance
        self.records: dict[int, Record | None] = {}
        exchange.calls.append(self.records)
        self.prompt: list[int] = []
        self.tokens: dict[int, list[int]] = {}

    async def follow(self, outputs: Any, delta: bool) -> AsyncGenerator[Any, None]:
        """Pass outputs on, each only once the records of its ended choices are here."""
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
                if ended:
                    await self._fetch(ended, output.finished)
                    done = output.finished
                yield output
        finally:
            await outputs.aclose()
            if not done:
                # Cancelled or failed: the worker may forget. Nobody is left to await this here.
                task = asyncio.ensure_future(self._ask([], True))
                _background.add(task)
                task.add_done_callback(self._forgotten)

    async def _ask(self, outputs: list[list[int]], done: bool) -> list[Record | None]:
        asked = self.key, self.prompt, outputs, done
        answers = await rpc.call(self.engine, "trimtab_record", *asked)
        return next((found for found in answers if any(found or ())), first_answer(answers) or [])

    async def _fetch(self, ended: list[int], done: bool) -> None:
        try:
            found = await self._ask([self.tokens[index] for index in ended], done)
        except TrimtabError as error:
            self.exchange.fault = error
            raise GenerationError(error.message) from None
        numbers = {version.name: version.number for version in self.exchange.versions}
        for index, record in zip(ended, found, strict=True):
            if record is not None and any(number > 1 for number in numbers.values()):
                record["versions"] = numbers
            self.records[index] = record
            wrong = metrics.observe(record)
            if wrong is not None and self.guidance.on_error == "fail":
                self.exchange.fault = scorer_failed(wrong)
                raise GenerationError(self.exchange.fault.message)

    def _forgotten(self, task: asyncio.Task[Any]) -> None:
        _background.discard(task)
        if not task.cancelled():
            task.exception()  # A dead engine has nothing left to forget.
