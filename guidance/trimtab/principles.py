"""Principles in words: texts that steer through the base model itself.

A principle c is a text that is put before the prompt. The base's logits after it, minus the base's
logits without it, say what the text changes; this is the score of a token v at the prefix x:

    s_c(v) = log π0(v | c, x) − log π0(v | x)

and its bonus is β·w·s_c(v), as a scorer's. One principle with w = 1 and β = 1 is the base with the
text in its prompt; a larger β exaggerates what the text changes; a negative w is a negative prompt.
Classifier-free guidance for language (Sanchez et al., arXiv 2306.17806) with the negative prompt c,
log π ∝ γ·log π0(v | x) − (γ − 1)·log π0(v | c, x), is w = −1 and β = γ − 1. The bonuses of several
principles add up, as in a product of experts (DExperts, arXiv 2105.03023).

The engine has one further row in its batch for each principle, whose prompt has the principle's
tokens (`insertion`), and whose answer is the same, token by token.
"""

import json
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from trimtab.errors import InvalidGuidance

MAX_PRINCIPLES = 8
MAX_TEXT = 1000
"""Maximum characters of a principle: what a server takes as a short text."""
NAME = "principle {}"
"""Its name in records and traces, by its place in the request, from 1; no scorer can have it."""
Text = Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]
_PROBE = "-"


def _whole(value: Any) -> Any:
    # JSON has one kind of number; True is not one.
    return float(value) if type(value) is int and abs(value) < 2**53 else value


class Principle(BaseModel):
    """One principle of a request."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    text: Text
    weight: Annotated[float, BeforeValidator(_whole), Field(allow_inf_nan=False, ge=-1e3, le=1e3)]


def named(principles: Sequence[Principle]) -> dict[str, Principle]:
    """Principles with a weight, by name."""
    pairs = ((NAME.format(i), one) for i, one in enumerate(principles, 1))
    return {name: one for name, one in pairs if one.weight != 0}


def from_flat(text: str) -> Any:
    """Principles in the flat form, which is JSON; GuidanceParams checks them.

    Raises:
        InvalidGuidance: no JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidGuidance(
            'principles must be JSON, such as [{"text": "Be kind.", "weight": 1}].',
            param="principles",
        ) from None


def insertion(tokenizer: Any, text: str, prompt: Sequence[int]) -> tuple[int, list[int]]:
    """Where a principle's tokens go into a prompt, and which: the prompt of the principle's row.

    If the prompt begins as a turn of the base's chat template does, the principle is a system turn
    before it; otherwise it is the text and a blank line. A BOS token stays the first.
    """
    bos = getattr(tokenizer, "bos_token_id", None)
    if bos is not None and _begins_turns(tokenizer, bos):
        bos = None
    start = 1 if bos is not None and list(prompt[:1]) == [bos] else 0
    turn = _without(bos, _rendered(tokenizer, [{"role": "system", "content": text}]))
    user = _without(bos, _rendered(tokenizer, [{"role": "user", "content": _PROBE}]))
    if turn and list(prompt[start : start + 1]) in (turn[:1], user[:1]):
        return start, turn
    return start, _encoded(tokenizer, f"{text}\n\n")


def _without(bos: int | None, ids: list[int]) -> list[int]:
    return ids[1:] if bos is not None and ids[:1] == [bos] else ids


def _begins_turns(tokenizer: Any, bos: int) -> bool:
    """Whether BOS begins every turn, as in some ChatML models, and so no text."""
    turns = [{"role": "user", "content": _PROBE}, {"role": "assistant", "content": _PROBE}]
    return _rendered(tokenizer, turns).count(bos) > 1


def _rendered(tokenizer: Any, turns: Sequence[dict[str, str]]) -> list[int]:
    """A conversation by the chat template; empty if there is none, or if it refuses this."""
    if not getattr(tokenizer, "chat_template", None):
        return []
    try:
        return _encoded(tokenizer, tokenizer.apply_chat_template(list(turns), tokenize=False))
    except Exception:  # templates raise what they like
        return []


def _encoded(tokenizer: Any, text: str) -> list[int]:
    try:
        return list(tokenizer.encode(text, add_special_tokens=False))
    except TypeError:  # a tokenizer without special tokens
        return list(tokenizer.encode(text))
