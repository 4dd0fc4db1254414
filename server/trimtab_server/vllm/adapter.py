"""vLLM as an Engine: converts its outputs to pieces and its workers' answers to statuses."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from vllm.engine.protocol import EngineClient
from vllm.exceptions import GenerationError, VLLMClientError, VLLMError
from vllm.sampling_params import RequestOutputKind, SamplingParams

from trimtab.config import ScorerSpec
from trimtab.engine import GenerationRequest, Piece, Sampling, ScorerStatus
from trimtab.errors import InvalidRequest, NoRoom, ScorerRefused, TrimtabError
from trimtab.scoring import meters
from trimtab.scoring.text import PromptContext
from trimtab.scoring.turns import turns
from trimtab.xargs import to_xargs
from trimtab_server.vllm import prompts, rpc
from trimtab_server.vllm.records import EXCHANGE, Exchange, converse
from trimtab_server.vllm.scoring import score_answers
from trimtab_server.vllm.search import search_pieces
from trimtab_server.wording import plain

SUMS = ("faults", "overruns", "tokens_forwarded", "flops")
"""Counts of a scorer that are summed over the engines of a data-parallel server."""
POLL_SECONDS = 0.05
ERRORS = {"NoRoom": NoRoom, "ScorerRefused": ScorerRefused}
LOWEST = -9999.0
"""−∞ is not JSON; vLLM's OpenAI routes use the same floor."""


class VllmEngine:
    """See trimtab.engine.Engine.

    Args:
        client: a Recording engine client.
        renderer: vLLM's renderer, from text or messages to an engine prompt.
        model: the model's name for clients.
    """

    greeting = GenerationRequest(
        text="The", sampling=Sampling(max_tokens=4, ignore_eos=True, seed=0)
    )
    patience = 30.0

    def __init__(self, client: EngineClient, renderer: Any, model: str) -> None:
        self.client = client
        self.renderer = renderer
        self.model = model

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Piece, None]:
        """See Engine.generate. Before the first piece, some vLLM errors pass: vLLM answers them."""
        exchange = Exchange(
            versions=request.versions, timed=request.timed, streams_trace=request.streams_trace
        )
        EXCHANGE.set(exchange)
        begun = False
        try:
            prompt = await self._prompt(request)
            conversation = None if request.turns is None else turns(list(request.turns))
            await converse(self.client, exchange, [conversation])
            if request.answer:
                prompt = await self._continued(prompt, request.answer, exchange)
            pieces = (
                self._decode(request, prompt, exchange)
                if request.search is None
                else search_pieces(self.client, request, prompt, exchange)
            )
            async with aclosing(pieces):
                async for piece in pieces:
                    yield piece
                    begun = True
        except (ValueError, VLLMError) as error:
            raise _translated(error, exchange, begun) from None

    async def _prompt(self, request: GenerationRequest) -> Any:
        if request.turns is not None:
            return await prompts.messages(self.renderer, request.turns)
        return await prompts.text(self.renderer, request.text or request.token_ids or "")

    async def _continued(self, prompt: Any, answer: Sequence[int], exchange: Exchange) -> Any:
        """A prompt with the beginning of its answer, which scorers see as a part of the answer."""
        ids = prompt["prompt_token_ids"]
        [context] = exchange.contexts or [PromptContext()]
        exchange.contexts = [replace(context, length=len(ids))]
        return await prompts.text(self.renderer, [*ids, *answer])

    async def _decode(
        self, request: GenerationRequest, prompt: Any, exchange: Exchange
    ) -> AsyncGenerator[Piece, None]:
        kind = RequestOutputKind.DELTA if request.stream else RequestOutputKind.FINAL_ONLY
        extra = None if request.guidance is None else to_xargs(request.guidance)
        params = SamplingParams(**asdict(request.sampling), output_kind=kind, extra_args=extra)
        outputs = self.client.generate(prompt, params, request.id)
        async with aclosing(outputs):
            async for output in outputs:
                for choice in output.outputs:
                    ended = choice.finish_reason is not None
                    yield Piece(
                        choice.index,
                        choice.text,
                        list(choice.token_ids),
                        choice.finish_reason,
                        exchange.record(0, choice.index) if ended else None,
                        _logprobs(choice),
                        len(output.prompt_token_ids or ()),
                        trace=exchange.traces.pop(choice.index, None),
                    )

    async def score(
        self, request: GenerationRequest, answers: Sequence[str]
    ) -> list[dict[str, float]]:
        """See Engine.score; a few answers in each call, between two steps of the engine."""
        exchange = Exchange(versions=request.versions)
        try:
            prompt = await self._prompt(request)
            conversation = None if request.turns is None else turns(list(request.turns))
            await converse(self.client, exchange, [conversation])
            return await score_answers(
                self.client, self.renderer, exchange, request, prompt, answers
            )
        except (ValueError, VLLMError) as error:
            raise _translated(error, exchange, begun=False) from None

    async def scorers(self, seconds: float) -> list[ScorerStatus]:
        """See Engine.scorers; counts are summed over the engines."""
        engines = await self._call("trimtab_scorers", seconds=seconds)
        if len(engines) == 1:
            statuses: list[ScorerStatus] = engines[0]
            return statuses
        return [
            {
                **of[0],
                **{key: sum(one[key] for one in of) for key in SUMS},
                "meters": meters.merged([one["meters"] for one in of]),
                "suspended": any(one["suspended"] for one in of),
            }
            for of in zip(*engines, strict=True)
        ]

    def problem(self) -> str | None:
        """See Engine.problem; a dead engine does not answer `scorers`."""
        return None

    async def load(self, version: str, spec: ScorerSpec, root: Path) -> Mapping[str, Any]:
        """See Engine.load; the worker loads it in a thread, on every engine."""
        await self._call("trimtab_load", version, spec.model_dump(), str(root))
        while True:
            statuses = await self._call("trimtab_load_status", version)
            if all(status["ready"] for status in statuses):
                break
            await asyncio.sleep(POLL_SECONDS)
        for error in (status["error"] for status in statuses):
            if error is not None:
                raise ERRORS[error["type"]](error["message"])
        kind: Mapping[str, Any] = statuses[0]
        return kind

    async def serve(self, name: str, version: str | None) -> None:
        """See Engine.serve."""
        await self._call("trimtab_serve", name, version)

    async def drop(self, version: str) -> None:
        """See Engine.drop."""
        await self._call("trimtab_drop", version)

    async def close(self) -> None:
        """Stop the engine's processes."""
        self.client.shutdown(timeout=0)

    async def _call(self, method: str, *arguments: Any, seconds: float | None = None) -> list[Any]:
        """The answers of the ranks that have scorers, one per engine."""
        answers = await rpc.call(self.client, method, *arguments, seconds=seconds)
        return [answer for answer in answers if answer is not None]


def _translated(error: Exception, exchange: Exchange, begun: bool) -> Exception:
    """The error to report for a request: ours where it is clearer."""
    if exchange.fault is not None:
        return exchange.fault
    if isinstance(error, TrimtabError):
        return error
    if isinstance(error, GenerationError) and begun:
        return TrimtabError(plain(str(error)))
    if begun:
        return TrimtabError("the engine stopped while it was generating.")
    if isinstance(error, ValueError | VLLMClientError):
        return InvalidRequest(plain(str(error.args[0])))
    return error  # answered by its own handler, such as vLLM's for a dead engine


def _logprobs(choice: Any) -> list[dict[str, Any]] | None:
    if choice.logprobs is None:
        return None
    pairs = zip(choice.token_ids, choice.logprobs, strict=True)
    return [_position(token, ranked) for token, ranked in pairs]


def _position(token: int, known: Mapping[int, Any]) -> dict[str, Any]:
    def entry(token_id: int) -> dict[str, Any]:
        return {
            "token_id": token_id,
            "token": known[token_id].decoded_token,
            "logprob": max(known[token_id].logprob, LOWEST),
        }

    ranked = sorted((i for i in known if known[i].rank), key=lambda i: known[i].rank)
    return {**entry(token), "top": [entry(i) for i in ranked]}
