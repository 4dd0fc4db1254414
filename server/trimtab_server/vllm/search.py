"""Search on the served engine: the asynchronous driver.

The draws of a round are concurrent calls of `engine.generate`, each with its own record if guided.
The scores of a round are one call to the worker, between two steps. If the client disconnects, the
driver is cancelled, which aborts every draw.
"""

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import asdict, dataclass
from itertools import count
from typing import Any

from vllm.engine.protocol import EngineClient
from vllm.exceptions import GenerationError
from vllm.sampling_params import RequestOutputKind, SamplingParams

from trimtab.adapters.vllm.ranks import first_answer
from trimtab.adapters.vllm.search import (
    drawn,
    ending,
    row_key,
    score_arguments,
    scored,
    stop_tokens,
    unguided,
)
from trimtab.engine import GenerationRequest, Piece
from trimtab.errors import TrimtabError
from trimtab.params import GuidanceParams
from trimtab.search import (
    Commit,
    Draw,
    Drawn,
    Problem,
    Result,
    Score,
    ScoredSequence,
    start,
)
from trimtab.xargs import to_xargs
from trimtab_server.vllm import rpc
from trimtab_server.vllm.records import EXCHANGE, Exchange
from trimtab_server.wording import plain

numbers = count()
background: set[asyncio.Task[Any]] = set()


async def search_pieces(
    engine: EngineClient, request: GenerationRequest, prompt: Any, exchange: Exchange
) -> AsyncGenerator[Piece, None]:
    """The answer of a search: in committed pieces if streamed, else whole.

    Raises:
        TrimtabError: a scorer failed.
        VLLMError, ValueError: the engine refuses a draw, or has died.
    """
    ids = list(prompt["prompt_token_ids"])
    renderer = _Text(engine.get_tokenizer(), ids)
    async with aclosing(Driver(engine, request, ids, exchange).run()) as results:
        async for latest in results:
            if isinstance(latest, Result):
                yield renderer.last(latest, request)
            elif request.stream and (piece := renderer.piece(list(latest.token_ids))).token_ids:
                yield piece


@dataclass
class _Text:
    """The text of a growing answer."""

    tokenizer: Any
    prompt: list[int]
    tokens: int = 0  # of the answer, sent so far
    text: str = ""

    def piece(self, token_ids: list[int], *, whole: bool = False) -> Piece:
        """The new text up to `token_ids`, with incomplete characters only if `whole`."""
        text = self._decode(token_ids)
        if not whole and text.endswith("\ufffd"):  # an incomplete character
            text = self.text
        piece = Piece(0, text[len(self.text) :], token_ids[self.tokens :])
        self.tokens, self.text = len(token_ids), text
        return piece

    def last(self, result: Result, request: GenerationRequest) -> Piece:
        """The last piece, with the search's result and usage."""
        piece = self.piece(result.token_ids, whole=True)
        piece.finish_reason = result.finish_reason
        piece.record = {
            "kl": result.kl,
            "kl_tail": result.kl_tail,
            "scores": result.scores,
            "steps": len(result.token_ids),
            "error": None,
        }
        method = request.search.method if request.search else ""
        piece.search = {"method": method, "value": result.value, **result.facts}
        spent = asdict(result.usage)
        piece.prompt_tokens = spent.pop("prompt_tokens")
        piece.spent = spent
        return piece

    def _decode(self, token_ids: list[int]) -> str:
        # Some tokenizers decode tokens differently at the beginning of a text.
        before = self.tokenizer.decode(self.prompt[-6:], skip_special_tokens=True)
        ids = [*self.prompt[-6:], *token_ids]
        whole: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return whole[len(before) :]


class Driver:
    """One request's search on the engine."""

    def __init__(
        self,
        engine: EngineClient,
        request: GenerationRequest,
        prompt: list[int],
        exchange: Exchange,
    ) -> None:
        sampling = request.sampling
        assert request.search is not None
        self.engine = engine
        self.versions = exchange.versions
        self.guidance = request.guidance or GuidanceParams()
        self.sampling = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "stop_token_ids": sampling.stop_token_ids,
            "flat_logprobs": True,
            "output_kind": RequestOutputKind.FINAL_ONLY,
        }
        room = engine.model_config.max_model_len - len(prompt)
        problem = Problem(
            tuple(prompt),
            min(sampling.max_tokens, room),
            stop_tokens(engine) | frozenset(sampling.stop_token_ids or ()),
            self.guidance,
            random.getrandbits(56) if sampling.seed is None else sampling.seed,
            turns=exchange.contexts[0].turns if exchange.contexts else None,
        )
        self.search = start(request.search, problem)
        self.number = next(numbers)
        self.draws = count()
        self.rows: set[int] = set()

    async def run(self) -> AsyncGenerator[Commit | Result, None]:
        """Run the search: yield its commits, then its result.

        Raises:
            TrimtabError: a scorer failed.
            VLLMError, ValueError: the engine refuses a draw, or has died.
        """
        answers: list[Any] | None = None
        try:
            while True:
                try:
                    yielded = self.search.send(answers)
                except StopIteration as end:
                    yield end.value
                    return
                if isinstance(yielded, Commit):
                    answers = None
                    yield yielded
                else:
                    answers = await self._answer(yielded)
        finally:
            # Not awaited: this task may be cancelled.
            task = asyncio.ensure_future(self._forget())
            background.add(task)
            task.add_done_callback(background.discard)

    async def _answer(self, requests: list[Draw] | list[Score]) -> list[Any]:
        scores = [item for item in requests if isinstance(item, Score)]
        if scores:
            return await self._score(scores)
        try:
            async with asyncio.TaskGroup() as group:
                draws = [item for item in requests if isinstance(item, Draw)]
                tasks = [group.create_task(self._draw(item)) for item in draws]
        except ExceptionGroup as failed:
            # One error is reported: the other draws were cancelled, or failed in the same way.
            raise failed.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _draw(self, item: Draw) -> Drawn:
        exchange = Exchange(versions=self.versions, contexts=[item.context])
        EXCHANGE.set(exchange)  # in this task's own context
        probes = {version.name for version in self.versions if version.reads == "states"}
        guidance = self.guidance if item.guided else None
        if guidance is None and probes:
            guidance = unguided(probes)
        top = min(item.top, self.engine.model_config.get_vocab_size())
        params = SamplingParams(
            **self.sampling,
            max_tokens=item.max_tokens,
            seed=item.seed,
            logprobs=top or None,
            extra_args=None if guidance is None else to_xargs(guidance),
            **ending(item.until),
        )
        name = f"search-{self.number}-{next(self.draws)}"
        prompt = {"prompt_token_ids": list(item.prefix)}
        try:
            async for output in self.engine.generate(prompt, params, name):
                last = output
        except GenerationError as error:
            raise exchange.fault or TrimtabError(plain(str(error))) from None
        record = exchange.record(0, 0) if item.guided else None
        reading = set(self.guidance.scorers or ()) - probes
        return drawn(last, top, record, len(reading))

    async def _score(self, items: list[Score]) -> list[ScoredSequence]:
        keys = [row_key(self.number, item) for item in items]
        self.rows.update(keys)
        xargs, *rest = score_arguments(self.guidance, items, keys)
        arguments = ({**xargs, **Exchange(versions=self.versions).carried}, *rest)
        return scored(first_answer(await rpc.call(self.engine, "trimtab_score", *arguments)))

    async def _forget(self) -> None:
        with suppress(TrimtabError):  # a dead engine has nothing left to forget
            await rpc.call(self.engine, "trimtab_forget", list(self.rows))
