"""Bodies of OpenAI's routes, for engines without their own application."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from trimtab.engine import GenerationRequest
from trimtab.errors import InvalidGuidance, InvalidRequest
from trimtab.params import FIELDS, GuidanceParams
from trimtab_server.caps import check_caps
from trimtab_server.errors import UnknownModel, invalid
from trimtab_server.protocol import GenerateRequest
from trimtab_server.state import State

OPENAI = {"max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "n", "stop", "stream"}
OPENAI |= {"stop_token_ids", "ignore_eos"}
IGNORED = {"model", "user", "metadata", "store", "stream_options", "parallel_tool_calls"}
NEUTRAL: Mapping[str, Any] = {
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "repetition_penalty": 1,
    "logit_bias": {},
    "logprobs": False,
    "tools": [],
    "tool_choice": "none",
    "response_format": {"type": "text"},
    "echo": False,
    "best_of": 1,
    "suffix": "",
}
"""OpenAI's fields that are accepted only with their neutral value."""
COMPLETION_TOKENS = 16
CHAT_TOKENS = 1024


@dataclass
class Parsed:
    """A request of an OpenAI route: one generation per prompt."""

    requests: list[GenerationRequest]
    usage: bool = False  # whether a stream ends with the token counts


def completion(fields: Mapping[str, Any], state: State) -> Parsed:
    """The body of POST /v1/completions."""
    check_caps(fields, state.caps)
    prompts = fields.get("prompt")
    if not isinstance(prompts, list) or (prompts and isinstance(prompts[0], int)):
        prompts = [prompts]
    rest = {"max_tokens": COMPLETION_TOKENS, **_present(fields)}
    rest.pop("prompt", None)
    by_ids = [isinstance(prompt, list) for prompt in prompts]
    names = ["prompt_token_ids" if ids else "prompt" for ids in by_ids]
    bodies = [_request({**rest, n: p}) for n, p in zip(names, prompts, strict=True)]
    if not bodies:
        raise InvalidRequest("prompt must not be empty.", param="prompt")
    return _parsed(fields, state, bodies)


def chat(fields: Mapping[str, Any], state: State) -> Parsed:
    """The body of POST /v1/chat/completions."""
    check_caps(fields, state.caps)
    rest = _present(fields)
    most = rest.pop("max_completion_tokens", None)
    rest = {"max_tokens": CHAT_TOKENS, **rest, **({} if most is None else {"max_tokens": most})}
    if isinstance(rest.get("messages"), list):
        rest["messages"] = [_turn(message) for message in rest["messages"]]
    return _parsed(fields, state, [_request(rest)])


def _parsed(fields: Mapping[str, Any], state: State, bodies: Sequence[GenerateRequest]) -> Parsed:
    if fields.get("model") not in (None, state.model):
        raise UnknownModel(
            f"there is no model of that name here, only {state.model}.", param="model"
        )
    options = fields.get("stream_options") or {}
    if not isinstance(options, dict):
        raise InvalidRequest("stream_options must be an object.", param="stream_options")
    params = None
    if fields.get("guidance") is not None:
        params = GuidanceParams.parse(fields["guidance"]).resolve(state.scorers, state.default)
    name = uuid.uuid4().hex
    requests = [
        GenerationRequest(
            id=f"{name}-{number}",
            text=body.prompt,
            token_ids=body.prompt_token_ids,
            turns=body.turns(),
            sampling=body.sampling(),
            guidance=params,
            versions=state.versions(params.scorers if params else None),
            stream=body.stream,
        )
        for number, body in enumerate(bodies)
    ]
    return Parsed(requests, options.get("include_usage") is True)


def _present(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields to parse: without nulls, neutral, ignored and guidance fields."""
    for name, neutral in NEUTRAL.items():
        _refuse(name, fields.get(name) not in (None, neutral))
    _refuse("logprobs", fields.get("logprobs") == 0 and fields["logprobs"] is not False)
    apart = {"guidance", *IGNORED, *NEUTRAL}
    rest = {k: v for k, v in fields.items() if k not in apart and v is not None}
    known = {*OPENAI, "prompt", "messages", "max_completion_tokens"}
    if set(rest) - known:
        raise InvalidRequest(
            "the request has a field that does not go with an upstream; those that do are "
            f"{', '.join(sorted({*known, 'guidance'}))}."
        )
    return rest


def _request(fields: Mapping[str, Any]) -> GenerateRequest:
    try:
        return GenerateRequest.model_validate(fields)
    except ValidationError as error:
        raise invalid(error, [*GenerateRequest.model_fields, *FIELDS]) from None


def _turn(message: Any) -> Any:
    """A message with its text parts joined. Other parts are refused."""
    if not isinstance(message, dict) or not isinstance(message.get("content"), list):
        return message
    parts = message["content"]
    if not all(isinstance(p, dict) and p.get("type") == "text" for p in parts):
        raise InvalidGuidance("guidance steers text alone; leave out all else.", param="messages")
    texts = [part.get("text") for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise InvalidRequest("a part of type text must have a text.", param="messages")
    return {**message, "content": "".join(texts)}


def _refuse(name: str, requested: bool) -> None:
    if requested:
        raise InvalidRequest(
            f"{name} does not go with an upstream, which reveals only its most likely tokens; "
            "leave it out.",
            param=name,
        )
