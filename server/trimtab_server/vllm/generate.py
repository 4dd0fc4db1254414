"""POST /generate: always guided; β = 0 is the base model."""

import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from vllm.entrypoints.serve.utils.api_utils import with_cancellation
from vllm.exceptions import GenerationError, VLLMClientError, VLLMError
from vllm.sampling_params import RequestOutputKind, SamplingParams

from trimtab.errors import TrimtabError
from trimtab.params import GuidanceParams
from trimtab.search import Result, SearchParams
from trimtab_server import strict_json
from trimtab_server.errors import InvalidRequest
from trimtab_server.events import DONE, event
from trimtab_server.protocol import GenerateRequest, parse
from trimtab_server.turns import turns
from trimtab_server.vllm import prompts
from trimtab_server.vllm.records import Exchange, begin, converse
from trimtab_server.vllm.search import Driver
from trimtab_server.vllm.search_answers import SearchRenderer
from trimtab_server.vllm.state import State
from trimtab_server.wording import plain

router = APIRouter()


@router.post("/generate")
@with_cancellation
async def generate(
    fields: Annotated[dict[str, Any], Depends(strict_json.fields)], raw_request: Request
) -> Response:
    """Continue a prompt under guidance."""
    asked, guidance, search = parse(fields)
    state: State = raw_request.app.state.trimtab
    guidance = guidance.resolve(state.scorers, state.default)
    exchange = begin(state.scorers, guidance)
    kind = RequestOutputKind.DELTA if asked.stream else RequestOutputKind.FINAL_ONLY
    try:
        prompt = await _prompt(asked, state.renderer)
        await converse(state.engine, exchange, [turns(asked.turns())])
        if search is not None:
            return await _search(state, asked, guidance, search, prompt, exchange)
        params = SamplingParams(
            **asked.sampling(), output_kind=kind, extra_args=guidance.to_xargs()
        )
        answer = GenerateAnswer(f"gen-{uuid.uuid4().hex}", state.model, exchange)
        outputs = state.engine.generate(prompt, params, answer.id)
        first = await anext(outputs)
    except (ValueError, VLLMError) as error:
        raise _refused(error, exchange) from None
    if asked.stream:
        return StreamingResponse(_events(first, outputs, answer), media_type="text/event-stream")
    choices = [answer.choice(choice) for choice in first.outputs]
    return JSONResponse({**answer.head, "choices": choices, "usage": answer.usage(first)})


async def _search(
    state: State,
    asked: GenerateRequest,
    guidance: GuidanceParams,
    search: SearchParams,
    prompt: Any,
    exchange: Exchange,
) -> Response:
    """Search an answer; what fails before anything was shown has a status of its own."""
    ids = list(prompt["prompt_token_ids"])
    head = {"id": f"gen-{uuid.uuid4().hex}", "model": state.model}
    telling = SearchRenderer(head, state.engine.get_tokenizer(), search.method, ids)
    found = Driver(state.engine, asked, guidance, search, ids, exchange).run()
    latest = await anext(found)
    if asked.stream:
        return StreamingResponse(telling.events(latest, found), media_type="text/event-stream")
    async with aclosing(found):
        while not isinstance(latest, Result):
            latest = await anext(found)
    return JSONResponse(telling.answer(latest))


async def _prompt(asked: GenerateRequest, renderer: Any) -> Any:
    if asked.messages is not None:
        return await prompts.messages(renderer, asked.turns() or ())
    return await prompts.text(renderer, asked.prompt or asked.prompt_token_ids or "")


def _refused(error: Exception, exchange: Exchange) -> Exception:
    """What to answer when the engine does not begin, or a scorer fails."""
    if exchange.fault is not None:
        return exchange.fault
    if isinstance(error, ValueError | VLLMClientError) and not isinstance(error, TrimtabError):
        return InvalidRequest(plain(str(error.args[0])))
    return error  # answered by its own handler, such as vLLM's for a dead engine


async def _events(first: Any, outputs: Any, answer: "GenerateAnswer") -> AsyncIterator[str]:
    output = first
    try:
        while True:
            choices = [answer.choice(choice) for choice in output.outputs]
            usage = answer.usage(output)
            yield event({**answer.head, "choices": choices})
            if output.finished:
                yield event({**answer.head, "choices": [], "usage": usage})
                break
            output = await anext(outputs)
    except GenerationError as error:
        fault = answer.exchange.fault or TrimtabError(plain(str(error)))
        yield event(fault.body())
    except VLLMError:
        yield event(TrimtabError("the engine stopped while it was generating.").body())
    finally:
        await outputs.aclose()
    yield DONE


@dataclass
class GenerateAnswer:
    """Renders the engine's outputs for one request."""

    id: str
    model: str
    exchange: Exchange
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def head(self) -> dict[str, str]:
        """What every answer and every event begins with."""
        return {"id": self.id, "model": self.model}

    def choice(self, choice: Any) -> dict[str, Any]:
        """One choice, or its next piece; with `guidance` once it has ended."""
        self.completion_tokens += len(choice.token_ids)
        shown: dict[str, Any] = {
            "index": choice.index,
            "text": choice.text,
            "token_ids": list(choice.token_ids),
            "finish_reason": choice.finish_reason,
        }
        if choice.logprobs is not None:
            shown["logprobs"] = [
                _position(token, found)
                for token, found in zip(choice.token_ids, choice.logprobs, strict=True)
            ]
        if choice.finish_reason is not None:
            shown["guidance"] = self.exchange.record(0, choice.index)
        return shown

    def usage(self, output: Any) -> dict[str, int]:
        """Token counts so far."""
        self.prompt_tokens = self.prompt_tokens or len(output.prompt_token_ids or ())
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


def _position(token: int, found: Mapping[int, Any]) -> dict[str, Any]:
    def entry(token_id: int) -> dict[str, Any]:
        return {
            "token_id": token_id,
            "token": found[token_id].decoded_token,
            # −∞ is not JSON; vLLM's OpenAI routes show the same floor.
            "logprob": max(found[token_id].logprob, -9999.0),
        }

    ranked = sorted((i for i in found if found[i].rank), key=lambda i: found[i].rank)
    return {**entry(token), "top": [entry(i) for i in ranked]}
