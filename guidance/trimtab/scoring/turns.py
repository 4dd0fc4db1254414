"""A conversation as scorers read it, in one form for all routes."""

from collections.abc import Mapping, Sequence
from typing import Any

from trimtab_models import strict_json

Turn = dict[str, Any]

CONVERSING = ("chat", "pair")
"""Values of a scorer's `reads` with which it may read the conversation behind a prompt."""


def turns(messages: Any, continued: bool = False) -> list[Turn] | None:
    """OpenAI's messages as turns of role and text; None if they are not messages.

    continued: whether the answer continues the last message.

    Parts of text are joined, and the developer role becomes system. An assistant's tool calls are
    kept, with their arguments as an object. Everything else is left out; the routes refuse it.
    """
    if not isinstance(messages, list) or not messages:
        return None
    if not all(isinstance(m, dict) and isinstance(m.get("role"), str) for m in messages):
        return None
    *before, last = [_turn(message) for message in messages]
    return [*before, {**last, "open": True} if continued else last]


def last_user_text(turns: Sequence[Mapping[str, Any]]) -> str:
    """The text of a conversation's last message of the user.

    Raises:
        ValueError: it has none.
    """
    for turn in reversed(turns):
        if turn["role"] == "user":
            return str(turn["content"])
    raise ValueError("it needs a message with the role user")


def with_answer(turns: Sequence[Mapping[str, Any]], answer: str) -> list[Turn]:
    """A new list of messages: the conversation, with the answer as its last message.

    The answer continues a last message that is open.
    """
    messages = [{name: turn[name] for name in turn if name != "open"} for turn in turns]
    if turns and turns[-1].get("open"):
        messages[-1]["content"] += answer
        return messages
    return [*messages, {"role": "assistant", "content": answer}]


def _turn(message: dict[str, Any]) -> Turn:
    role = message["role"]
    # vLLM joins the parts of a tool's result with newlines, also on Anthropic's route.
    text = _text(message.get("content"), "\n" if role == "tool" else "")
    turn: Turn = {"role": "system" if role == "developer" else role, "content": text}
    calls = message.get("tool_calls")
    if role == "assistant" and isinstance(calls, list) and calls:
        turn["tool_calls"] = [_call(call) for call in calls]
    return turn


def _text(content: Any, between: str) -> str:
    if isinstance(content, list):
        return between.join(filter(None, map(_part, content)))
    return content if isinstance(content, str) else ""


def _part(part: Any) -> str:
    text = part.get("text", part.get("refusal")) if isinstance(part, dict) else part
    return text if isinstance(text, str) else ""


def _call(call: Any) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    function = function if isinstance(function, dict) else {}
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = strict_json.read(arguments)
        except ValueError:  # vLLM, too, reads anything else as an empty object
            arguments = {}
    valid = arguments if isinstance(arguments, dict) else {}
    return {
        "type": "function",
        "function": {"name": str(function.get("name", "")), "arguments": valid},
    }
