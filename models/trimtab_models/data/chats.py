"""Chat messages, and how a tokenizer's own template writes them.

A template is trusted with the form, not with the content: where it would leave out a message, a
tool call or a part of the answer, or write "None" for an absent text, the row is a fault. Text
parts ({"type": "text"}) become one text, so that no template prints them as a list.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from jinja2 import TemplateError

from trimtab_models.data.faults import Fault, Record, field, kind, word

Message = dict[str, Any]
Write: TypeAlias = Callable[[list[Message]], str]
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""Further fields of a message that an answer may begin with."""
ANSWERS = ("completion", "chosen", "rejected")
FIXED = {"tokenize", "tools", "add_generation_prompt", "continue_final_message", "return_dict"}


def messages(record: Record, name: str) -> list[Message]:
    """A field's chat messages; what is null in them (as `datasets` fills up) is left out.

    The content of each is text; or null, or absent, beside tool calls.

    Raises:
        Fault: it holds no messages, or something that is no text.
    """
    value = field(record, name)
    if not isinstance(value, list):
        raise Fault(f"{name!r} is {kind(value)}; expected text or a list of messages")
    if not value:
        raise Fault(f"{name!r} is empty")
    return [_message(message, name) for message in value]


def _message(message: Any, name: str) -> Message:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise Fault(f"{name!r} has a message without the texts 'role' and 'content'")
    plain = {key: part for key, part in message.items() if part is not None}
    content = plain.get("content")
    if isinstance(content, list):
        if not all(_is_text(part) for part in content):
            raise Fault(f"{name!r} has a message with a part that is not text")
        plain["content"] = "".join(part["text"] for part in content)
    elif content is None and plain.get("tool_calls"):
        # A template may ask whether it is null: as it was given.
        plain |= {"content": None} if "content" in message else {}
    elif not isinstance(content, str):
        raise Fault(f"{name!r} has a message without the texts 'role' and 'content'")
    return plain


def _is_text(part: Any) -> bool:
    return (
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
    )


def opening(tokenizer: Any, record: Record) -> str:
    """A chat prompt up to the answer's first character.

    A prompt that ends with an assistant's turn is continued, as in TRL, unless the answers are
    messages, which are turns of their own.

    Raises:
        Fault: the template cannot write it, or leaves something out.
    """
    chat = messages(record, "prompt")
    text = _opened(tokenizer, record, chat)
    _check(lambda other: _opened(tokenizer, record, other), chat, chat, text)
    bare = {**record, "tools": None}
    if _tools(record) and text == _tried(lambda: _opened(tokenizer, bare, chat)):
        raise Fault("the chat template leaves out the 'tools'")
    return text


def answer(tokenizer: Any, record: Record, name: str) -> str:
    """What the template writes of an answer, given as a message, after the prompt's opening.

    Raises:
        Fault: as `opening`; or the answer is not one message of the assistant's.
    """
    said = messages(record, name)
    if not isinstance(field(record, "prompt"), list):
        raise Fault(f"{name!r} is a list of messages, so 'prompt' must be one too")
    if len(said) != 1:
        raise Fault(f"{name!r} has {len(said)} messages; a scorer reads one answer")
    if not (said[0].get("content") or said[0].get("tool_calls")):
        raise Fault(f"{name!r} is empty")
    prompt = messages(record, "prompt")
    if said[0]["role"] != "assistant":
        raise Fault(f"{name!r} is a message of {word(said[0]['role'], 20)!r}, not the assistant's")
    chat = prompt + said
    begun, whole = _opened(tokenizer, record, prompt), render(tokenizer, record, chat)
    if not whole.startswith(begun):
        raise Fault(
            f"the chat template writes the prompt otherwise once {name!r} follows, so the answer "
            "cannot be told from the prompt; give both as text, or change the template"
        )
    _check(lambda other: render(tokenizer, record, other), chat, said, whole)
    parts = [said[0].get(part) for part in ("content", *THOUGHTS)]
    if not _holds(whole[len(begun) :], parts):
        # A template that opens the answer with a thought holds its beginning in the prompt.
        closed = render(tokenizer, record, prompt, add_generation_prompt=False)
        if not (whole.startswith(closed) and _holds(whole[len(closed) :], parts)):
            raise Fault(
                f"the chat template leaves out a part of {name!r}, such as its thoughts; give it "
                "and the prompt as text"
            )
    return whole[len(begun) :]


def _opened(tokenizer: Any, record: Record, chat: Sequence[Message]) -> str:
    several = record.get("completions")
    answers = [*map(record.get, ANSWERS), *(several if isinstance(several, list) else ())]
    said = any(isinstance(one, list) for one in answers)
    goes_on = chat[-1]["role"] == "assistant" and not said
    return render(
        tokenizer, record, chat, add_generation_prompt=not goes_on, continue_final_message=goes_on
    )


def render(tokenizer: Any, record: Record, chat: Sequence[Message], **options: Any) -> str:
    """Messages as the template writes them, with a record's tools and template arguments.

    Raises:
        Fault: there is no template, or it refuses them.
    """
    if tokenizer.chat_template is None:
        raise Fault("there are chat messages, but the tokenizer has no chat template")
    given = record.get("chat_template_kwargs") or {}
    if not isinstance(given, dict) or FIXED & set(given):
        raise Fault(f"'chat_template_kwargs' is an object without {', '.join(sorted(FIXED))}")
    try:
        text = tokenizer.apply_chat_template(
            list(chat), tools=_tools(record), tokenize=False, **given, **options
        )
    except Fault:
        raise
    except (TemplateError, ValueError, TypeError, LookupError, AttributeError) as error:
        null = any(message.get("content", "") is None for message in chat)
        hint = "; give '' where content is null" if null else ""
        raise Fault(f"the chat template refuses the messages ({word(error)}){hint}") from None
    return str(text)


def _tools(record: Record) -> list[Any] | None:
    """A record's tools; as TRL has them, a list, or the JSON of one."""
    tools = record.get("tools") or None
    try:
        tools = json.loads(tools) if isinstance(tools, str) else tools
    except ValueError:
        raise Fault("'tools' is text, but not JSON") from None
    if tools is not None and not (
        isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)
    ):
        raise Fault(f"'tools' is {kind(tools)}; expected a list of objects, or its JSON")
    return tools or None


def _holds(text: str, parts: Sequence[Any]) -> bool:
    """Whether a text holds all these, spaces and line ends aside."""
    there = _bare(text)
    return all(_bare(part) in there for part in parts if isinstance(part, str))


def _bare(text: str) -> str:
    return "".join(text.split())


def _check(write: Write, chat: list[Message], looked_at: Sequence[Message], text: str) -> None:
    """Raise a Fault if a template wrote less than some of a chat's messages say, or "None"."""

    def without(message: Message, **other: Any) -> str | None:
        """The text if the message said something else; None if it cannot be written."""
        return _tried(lambda: write([{**one, **other} if one is message else one for one in chat]))

    there = _bare(text)
    for message in looked_at:
        content = message.get("content", "")
        if content is None:
            blank = without(message, content="")
            if blank is not None and text.count("None") > blank.count("None"):
                raise Fault("the chat template writes 'None' for a null content; give '' instead")
        elif _bare(content) not in there and text == without(message, content=""):
            role = word(message["role"], 20)
            raise Fault(f"the chat template leaves out a message of {role!r}")
        if message.get("tool_calls") and text == without(message, tool_calls=[]):
            raise Fault("the chat template leaves out the tool calls")


def _tried(write: Callable[[], str]) -> str | None:
    try:
        return write()
    except Fault:
        return None
