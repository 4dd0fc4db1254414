"""vLLM's guided routes: where their requests hold sampling parameters and conversations.

Every other route refuses guidance. A scorer reads the messages that the route renders with the
base's chat template: converted by vLLM's own code, in one form (turns.py).
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest
from vllm.entrypoints.anthropic.serving import AnthropicServingMessages
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.entrypoints.openai.responses.utils import (
    construct_input_messages,
    should_continue_final_message,
)

from trimtab.errors import InvalidGuidance
from trimtab.scoring.turns import Turn, turns
from trimtab.xargs import PREFIX

Fields = dict[str, Any]
Conversations = list[list[Turn] | None]

XARGS = "vllm_xargs"
MEDIA = ("image", "audio", "video", "file", "document")
UNGUIDED = ("use_beam_search", "prompt_embeds", "background", "features", "content_parts")
"""Fields of requests that guidance cannot steer, or whose answer cannot carry records."""


@dataclass(frozen=True)
class Route:
    """Where the requests of one route hold their parts."""

    conversations: Callable[[Fields, Any], Conversations]
    """(body, application state) → the conversations of its engine calls, in order."""
    within: str | None = None
    """The field with the sampling parameters; None: the body itself."""
    flat: str = XARGS
    """The field of the sampling parameters with the `trimtab_*` keys."""
    items: bool = False
    """Whether the entries of `input` are validated one by one (items.py)."""

    def sampling(self, fields: Fields) -> Fields:
        """A body's sampling parameters; empty if not an object, which the route refuses."""
        parameters = fields if self.within is None else fields.get(self.within)
        return parameters if isinstance(parameters, dict) else {}

    def put(self, fields: Fields, flat: Mapping[str, Any]) -> None:
        """Write the flat keys into a body."""
        if self.within is None:
            fields[self.flat] = flat
        else:
            fields[self.within] = {**self.sampling(fields), self.flat: flat}


def _none(_: Fields, __: Any) -> Conversations:
    return []


def _chat(fields: Fields, _: Any) -> Conversations:
    return [turns(fields.get("messages"), _continued(fields))]


def _batch(fields: Fields, _: Any) -> Conversations:
    batch = fields.get("messages")
    if not isinstance(batch, list):
        return []
    return [turns(messages, _continued(fields)) for messages in batch]


def _continued(fields: Fields) -> bool:
    return fields.get("continue_final_message") is True


def _invoked(fields: Fields, state: Any) -> Conversations:
    """A chat if the body is a valid one; otherwise a completion (the error is caught)."""
    ChatCompletionRequest.model_validate(copy.deepcopy(fields))
    return _chat(fields, state)


def _anthropic(fields: Fields, _: Any) -> Conversations:
    request = AnthropicMessagesRequest.model_validate(copy.deepcopy(fields))
    return [turns(AnthropicServingMessages.to_chat_completion_request(request).messages)]


def _responses(fields: Fields, state: Any) -> Conversations:
    request = ResponsesRequest.model_validate(copy.deepcopy(fields))
    before, output = None, None
    if request.previous_response_id is not None:
        serving = state.openai_serving_responses
        previous = serving.response_store.get(request.previous_response_id)
        if previous is not None:
            before, output = serving.msg_store.get(previous.id), previous.output
    return [
        turns(
            construct_input_messages(
                request_instructions=request.instructions,
                request_input=request.input,
                prev_msg=before,
                prev_response_output=output,
            ),
            should_continue_final_message(request.input),
        )
    ]


GUIDED: Mapping[str, Route] = {
    "/v1/chat/completions": Route(_chat),
    "/v1/chat/completions/batch": Route(_batch),
    "/v1/completions": Route(_none),
    "/v1/responses": Route(_responses, items=True),
    "/v1/messages": Route(_anthropic),
    "/invocations": Route(_invoked),
    "/inference/v1/generate": Route(_none, within="sampling_params", flat="extra_args"),
}


def conversations(route: Route, fields: Fields, state: Any) -> Conversations:
    """The conversations of a request; none if it is invalid, which the route reports."""
    try:
        return route.conversations(fields, state)
    except Exception:  # the route raises it again
        return []


def misplaced(fields: Fields, route: Route | None) -> bool:
    """Whether a body has guidance in a place that is not read. route: None if not guided."""
    read = None if route is None else route.sampling(fields).get(route.flat)
    sampling = fields.get("sampling_params")
    places = [fields, sampling] if isinstance(sampling, dict) else [fields]
    flat = [place.get(name) for place in places for name in (XARGS, "extra_args")]
    unread = [keys for keys in flat if isinstance(keys, dict) and keys is not read]
    if any(key.startswith(PREFIX) for keys in (*places, *unread) for key in keys):
        return True
    return route is None and fields.get("guidance") is not None


def refuse_unguidable(fields: Fields) -> None:
    """Refuse requests that guidance cannot steer.

    Raises:
        InvalidGuidance: naming the field.
    """
    for name in UNGUIDED:
        if fields.get(name):
            raise InvalidGuidance(
                f"guidance cannot steer a request with {name}; leave one of the two out.",
                param=name,
            )
    transfer = fields.get("kv_transfer_params")
    if isinstance(transfer, dict) and transfer.get("prompt_token_ids"):
        raise InvalidGuidance(
            "guidance cannot steer a request whose messages are replaced by token ids; leave out "
            "prompt_token_ids.",
            param="kv_transfer_params",
        )
    for name in ("messages", "input"):
        if _has_media(fields.get(name)):
            raise InvalidGuidance(
                "guidance steers text alone; leave out guidance, or the images and sounds.",
                param=name,
            )


def _has_media(value: Any) -> bool:
    """Whether messages or their parts, at any depth of lists, contain media."""
    if isinstance(value, list):
        return any(map(_has_media, value))
    if not isinstance(value, dict):
        return False
    kind = " ".join(
        map(str, (value.get("type", ""), *value))
    )  # vLLM also detects parts by their key
    media = "role" not in value and any(word in kind for word in MEDIA)
    return media or any(_has_media(value.get(name)) for name in ("content", "output"))
