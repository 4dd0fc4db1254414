"""What requests may ask of an upstream: the bodies of all routes as one, and what is refused."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from trimtab.errors import InvalidGuidance
from trimtab.params import FIELDS, GuidanceParams
from trimtab_server.caps import check_caps
from trimtab_server.errors import InvalidRequest, UnknownModel, invalid
from trimtab_server.protocol import GenerateRequest
from trimtab_server.protocol import parse as parse_generate
from trimtab_server.upstream.naming import Naming, UpstreamPrompt
from trimtab_server.upstream.state import UpstreamState

NEEDS_LOGITS = (
    "min_tokens",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logprobs",
)
"""Fields of POST /generate that need the base's own logits."""
NEEDS_IDS = ("stop_token_ids", "ignore_eos")
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
"""OpenAI's fields that only pass where they ask for nothing."""
COMPLETION_TOKENS = 16
CHAT_TOKENS = 1024


@dataclass
class Asked:
    """A request, ready for the decoder."""

    request: GenerateRequest
    prompts: list[UpstreamPrompt]
    params: GuidanceParams | None  # None: the base, without a record
    usage: bool = False  # of a stream: whether it ends with the token counts


def generate(fields: Mapping[str, Any], state: UpstreamState) -> Asked:
    """The body of POST /generate."""
    if "search" in fields:
        raise InvalidRequest("an upstream cannot be searched; leave search out.", param="search")
    request, params, _ = parse_generate(fields)
    naming = state.decoder.naming
    for name in NEEDS_LOGITS:
        _refuse(name, getattr(request, name) != GenerateRequest.model_fields[name].default)
    _check_ids(request, naming)
    params = params.resolve(state.scorers, state.default)
    turns = [turn.model_dump() for turn in request.messages] if request.messages else None
    return Asked(request, [naming.prompt(request.prompt, request.prompt_token_ids, turns)], params)


def completion(fields: Mapping[str, Any], state: UpstreamState) -> Asked:
    """The body of POST /v1/completions."""
    check_caps(fields)
    prompts = fields.get("prompt")
    if not isinstance(prompts, list) or (prompts and isinstance(prompts[0], int)):
        prompts = [prompts]
    rest = {"max_tokens": COMPLETION_TOKENS, **_present(fields)}
    rest.pop("prompt", None)
    by_ids = [isinstance(prompt, list) for prompt in prompts]
    names = ["prompt_token_ids" if ids else "prompt" for ids in by_ids]
    requests = [_request({**rest, n: p}) for n, p in zip(names, prompts, strict=True)]
    if not requests:
        raise InvalidRequest("prompt must not be empty.", param="prompt")

    def made(naming: Naming) -> list[UpstreamPrompt]:
        return [naming.prompt(r.prompt, r.prompt_token_ids) for r in requests]

    return _asked(fields, state, requests[0], made)


def chat(fields: Mapping[str, Any], state: UpstreamState) -> Asked:
    """The body of POST /v1/chat/completions."""
    check_caps(fields)
    rest = _present(fields)
    most = rest.pop("max_completion_tokens", None)
    rest = {"max_tokens": CHAT_TOKENS, **rest, **({} if most is None else {"max_tokens": most})}
    if isinstance(rest.get("messages"), list):
        rest["messages"] = [_turn(message) for message in rest["messages"]]
    request = _request(rest)
    turns = [turn.model_dump() for turn in request.messages or ()]
    return _asked(fields, state, request, lambda naming: [naming.prompt(turns=turns)])


def _asked(
    fields: Mapping[str, Any],
    state: UpstreamState,
    request: GenerateRequest,
    made: Callable[[Naming], list[UpstreamPrompt]],
) -> Asked:
    if fields.get("model") not in (None, state.model):
        raise UnknownModel(
            f"there is no model of that name here, only {state.model}.", param="model"
        )
    options = fields.get("stream_options") or {}
    if not isinstance(options, dict):
        raise InvalidRequest("stream_options must be an object.", param="stream_options")
    _check_ids(request, state.decoder.naming)
    params = None
    if fields.get("guidance") is not None:
        params = GuidanceParams.parse(fields["guidance"]).resolve(state.scorers, state.default)
    usage = options.get("include_usage") is True
    return Asked(request, made(state.decoder.naming), params, usage)


def _present(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that say something, without those that only have a say elsewhere."""
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
    """A message with its text parts joined; images and the like are refused."""
    if not isinstance(message, dict) or not isinstance(message.get("content"), list):
        return message
    parts = message["content"]
    if not all(isinstance(p, dict) and p.get("type") == "text" for p in parts):
        raise InvalidGuidance("guidance steers text alone; leave out all else.", param="messages")
    texts = [part.get("text") for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise InvalidRequest("a part of type text must have a text.", param="messages")
    return {**message, "content": "".join(texts)}


def _refuse(name: str, asked: bool) -> None:
    if asked:
        raise InvalidRequest(
            f"{name} does not go with an upstream, which reveals only its most likely tokens; "
            "leave it out.",
            param=name,
        )


def _check_ids(request: GenerateRequest, naming: Naming) -> None:
    for name in NEEDS_IDS:
        if getattr(request, name) and not naming.closed:
            raise InvalidRequest(
                f"{name} needs the upstream's tokens, which this server does not know; leave it "
                "out, or start the server with --tokenizer.",
                param=name,
            )
