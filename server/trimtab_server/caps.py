"""Caps and JSON types of a generation request's fields, on every route.

vLLM accepts `"n": "100"`, `100.0` and `true` as integers. Here a value of another JSON type is
refused, so that the caps see the numbers that vLLM sees.
"""

from collections.abc import Mapping
from typing import Any

from trimtab.errors import InvalidRequest
from trimtab.principles import MAX_PRINCIPLES
from trimtab.search.params import MAX_SEQUENCES
from trimtab_server.cap_settings import NARROW, Caps

MAX_STOP = 4
MAX_LOGPROBS = 20
MAX_STOP_IDS = 64
MAX_BIASES = 300


CHOICES = ("n", "best_of")
COUNTS = {
    # vLLM's own limit is wider, for the candidates of a tree search; -1 means the whole vocabulary.
    "logprobs": MAX_LOGPROBS,
    "top_logprobs": MAX_LOGPROBS,
    "prompt_logprobs": MAX_LOGPROBS,
}
INTEGERS = (
    *CHOICES,
    *COUNTS,
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "max_tool_calls",
    "min_tokens",
    "seed",
    "top_k",
    "truncate_prompt_tokens",
    "thinking_token_budget",
    "stream_interval",
    "priority",
)
NUMBERS = (
    "temperature",
    "top_p",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "length_penalty",
)
SWITCHES = (
    "stream",
    "echo",
    "ignore_eos",
    "use_beam_search",
    "background",
    "continue_final_message",
)
TEXTS = {"stop": MAX_STOP, "stop_sequences": MAX_STOP, "bad_words": MAX_BIASES}
IDS = {"stop_token_ids": MAX_STOP_IDS, "allowed_token_ids": None, "logprob_token_ids": None}


def check_caps(fields: Mapping[str, Any], caps: Caps = NARROW) -> None:
    """Check the caps and JSON types of a generation request.

    Null means absent; the route checks everything else.

    Raises:
        InvalidRequest: naming the field, and its type or its cap.
    """
    for name in INTEGERS:
        # logprobs is a switch on the chat routes and a count on completions.
        switch = name == "logprobs" and isinstance(fields.get(name), bool)
        _check(fields, name, _integer(fields.get(name)) or switch, "an integer")
    for name in NUMBERS:
        value = fields.get(name)
        _check(fields, name, _integer(value) or isinstance(value, float), "a number")
    for name in SWITCHES:
        _check(fields, name, isinstance(fields.get(name), bool), "true or false")
    for name, cap in {**dict.fromkeys(CHOICES, caps.choices), **COUNTS}.items():
        value = fields.get(name)
        if value is not None and value < 0:
            raise InvalidRequest(f"{name} must not be below 0.", param=name)
        _cap(name, value or 0, cap)
    for name, cap in TEXTS.items():
        _check_list(fields, name, cap, str, "text, or a list of texts")
    for name, most in IDS.items():
        _check_list(fields, name, most, int, "a list of token ids")
    _check_biases(fields)
    _cap("prompt", _prompts(fields.get("prompt"), caps.prompts), caps.prompts)
    _cap("messages", _conversations(fields.get("messages")), caps.prompts)


def check_choices(n: int, caps: Caps) -> None:
    """Check the cap on `n` alone.

    Raises:
        InvalidRequest: it is over the cap.
    """
    _cap("n", n, caps.choices)


def _integer(value: Any) -> bool:
    return type(value) is int  # a boolean is an int too


def _check(fields: Mapping[str, Any], name: str, valid: bool, expected: str) -> None:
    if not valid and fields.get(name) is not None:
        raise InvalidRequest(f"{name} must be {expected}.", param=name)


def _cap(name: str, size: int, cap: int | None) -> None:
    if cap is not None and size > cap:
        raise InvalidRequest(f"{name} is over this server's limit of {cap}.", param=name)


def _check_list(
    fields: Mapping[str, Any], name: str, cap: int | None, kind: type, expected: str
) -> None:
    value = fields.get(name)
    if isinstance(value, list):
        _cap(name, len(value), cap)
        _check(fields, name, all(type(entry) is kind for entry in value), expected)
    else:
        _check(fields, name, kind is str and isinstance(value, str), expected)


def _check_biases(fields: Mapping[str, Any]) -> None:
    biases = fields.get("logit_bias")
    valid = isinstance(biases, dict) and all(type(b) in (int, float) for b in biases.values())
    _check(fields, "logit_bias", valid, "an object of numbers by token id")
    _cap("logit_bias", len(biases or ()), MAX_BIASES)


def _prompts(prompt: Any, cap: int) -> int:
    """The number of prompts. A flat list of integers is one prompt of token ids."""
    if not isinstance(prompt, list) or all(map(_integer, prompt)):
        return 1
    if len(prompt) > cap:
        return len(prompt)
    for entry in prompt:
        if not isinstance(entry, str) and not (
            isinstance(entry, list) and all(map(_integer, entry))
        ):
            raise InvalidRequest("prompt must be text, token ids, or a list of one of these.")
    return len(prompt)


def _conversations(messages: Any) -> int:
    """The number of conversations; one route accepts several."""
    several = isinstance(messages, list) and any(isinstance(entry, list) for entry in messages)
    return len(messages) if several else 1


def answers(fields: Mapping[str, Any], caps: Caps = NARROW) -> int:
    """The number of answers that a request needs; at least one, even if its fields are invalid.

    An answer with principles counts once more for each of them.
    """
    prompt, search = fields.get("prompt"), fields.get("search")
    prompts = 1
    if isinstance(prompt, list) and not all(map(_integer, prompt)):
        prompts = min(len(prompt), caps.prompts)
    prompts *= min(_conversations(fields.get("messages")), caps.prompts)
    sampling = fields.get("sampling_params")  # of /inference/v1/generate
    counts: list[Any] = [(sampling if isinstance(sampling, dict) else fields).get("n")]
    if isinstance(search, dict):
        counts = [search.get(name) for name in ("n", "width", "particles")]
    highest = max(MAX_SEQUENCES, caps.choices)
    most: int = max([1, *(c for c in counts if _integer(c) and c <= highest)])
    return prompts * most * (1 + _principles(fields))


def _principles(fields: Mapping[str, Any]) -> int:
    """The principles of a request, each of which takes a row of the batch beside each answer."""
    guidance = fields.get("guidance")
    places = [fields, guidance] if isinstance(guidance, dict) else [fields]
    lists = [place["principles"] for place in places if isinstance(place.get("principles"), list)]
    count = sum(map(len, lists)) + sum("negative_prompt" in place for place in places)
    return min(count, MAX_PRINCIPLES)
