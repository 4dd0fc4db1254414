"""Chat messages, rendered by a tokenizer's own template.

A template decides the form, but must not change the content: if it leaves out a message, a tool
call or a part of the answer, or writes "None" for an absent text, the row is a fault. Text parts
({"type": "text"}) are joined into one text, so that no template prints them as a list.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from jinja2 import TemplateError

from trimtab_models.data.faults import Fault, Record, field, json_type, word

Message = dict[str, Any]
Write: TypeAlias = Callable[[list[Message]], str]
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""Further fields of a message; an answer may begin with their text."""
ANSWERS = ("completion", "chosen", "rejected")
FIXED = {"tokenize", "tools", "add_generation_prompt", "continue_final_message", "return_dict"}


def messages(record: Record, name: str) -> list[Message]:
    """A field's chat messages, without the null keys that `datasets` adds.

    The content of each is text; beside tool calls it may be null or absent.

    Raises:
        Fault: it is not a list of messages, or a content is not text.
    """
    value = field(record, name)
    if not isinstance(value, list):
        raise Fault(f"{name!r} is {json_type(value)}; expected text or a list of messages")
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
        # A template may test whether the content is null, so it stays null or absent.
        plain |= {"content": None} if "content" in message else {}
    elif not isinstance(content, str):
        raise Fault(f"{name!r} has a message without the texts 'role' and 'content'")
    return plain


def _is_text(part: Any) -> bool:
    return (
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
    )


def opening(tokenizer: Any, record: Record) -> str:
    """A rendered chat prompt up to the answer's first character.

    A prompt that ends with an assistant's turn is continued, as in TRL, unless the answers are
    messages, which are separate turns.

    Raises:
        Fault: the template cannot render it, or leaves something out.
    """
    chat = messages(record, "prompt")
    text = _render_prompt(tokenizer, record, chat)
    _check(lambda other: _render_prompt(tokenizer, record, other), chat, chat, text)
    bare = {**record, "tools": None}
    if _tools(record) and text == _or_none(lambda: _render_prompt(tokenizer, bare, chat)):
        raise Fault("the chat template leaves out the 'tools'")
    return text


def answer(tokenizer: Any, record: Record, name: str) -> str:
    """An answer message as the template renders it after the prompt's opening.

    Raises:
        Fault: as `opening`; or the answer is not exactly one message of the assistant.
    """
    answers = messages(record, name)
    if not isinstance(field(record, "prompt"), list):
        raise Fault(f"{name!r} is a list of messages, so 'prompt' must be one too")
    if len(answers) != 1:
        raise Fault(f"{name!r} has {len(answers)} messages; expected one answer")
    message = answers[0]
    if not (message.get("content") or message.get("tool_calls")):
        raise Fault(f"{name!r} is empty")
    prompt = messages(record, "prompt")
    if message["role"] != "assistant":
        raise Fault(f"{name!r} has the role {word(message['role'], 20)!r}; expected 'assistant'")
    chat = prompt + answers
    start, whole = _render_prompt(tokenizer, record, prompt), render(tokenizer, record, chat)
    if not whole.startswith(start):
        raise Fault(
            f"the chat template renders the prompt differently when {name!r} follows, so the "
            "answer cannot be separated from the prompt; pass both as text, or change the template"
        )
    _check(lambda other: render(tokenizer, record, other), chat, answers, whole)
    parts = [message.get(part) for part in ("content", *THOUGHTS)]
    if not _contains(whole[len(start) :], parts):
        # A template may put the start of the answer's thoughts into the prompt's opening.
        closed = render(tokenizer, record, prompt, add_generation_prompt=False)
        if not (whole.startswith(closed) and _contains(whole[len(closed) :], parts)):
            raise Fault(
                f"the chat template leaves out a part of {name!r}, such as its thoughts; pass it "
                "and the prompt as text"
            )
    return whole[len(start) :]


def _render_prompt(tokenizer: Any, record: Record, chat: Sequence[Message]) -> str:
    several = record.get("completions")
    answers = [*map(record.get, ANSWERS), *(several if isinstance(several, list) else ())]
    is_chat = any(isinstance(one, list) for one in answers)
    continues = chat[-1]["role"] == "assistant" and not is_chat
    return render(
        tokenizer,
        record,
        chat,
        add_generation_prompt=not continues,
        continue_final_message=continues,
    )


def render(tokenizer: Any, record: Record, chat: Sequence[Message], **options: Any) -> str:
    """Messages rendered by the template, with a record's tools and template arguments.

    Raises:
        Fault: there is no template, or it fails.
    """
    if tokenizer.chat_template is None:
        raise Fault("there are chat messages, but the tokenizer has no chat template")
    arguments = record.get("chat_template_kwargs") or {}
    if not isinstance(arguments, dict) or FIXED & set(arguments):
        raise Fault(f"'chat_template_kwargs' must be an object without {', '.join(sorted(FIXED))}")
    try:
        text = tokenizer.apply_chat_template(
            list(chat), tools=_tools(record), tokenize=False, **arguments, **options
        )
    except Fault:
        raise
    except (TemplateError, ValueError, TypeError, LookupError, AttributeError) as error:
        null = any(message.get("content", "") is None for message in chat)
        hint = "; replace a null content by ''" if null else ""
        raise Fault(f"the chat template refuses the messages ({word(error)}){hint}") from None
    return str(text)


def _tools(record: Record) -> list[Any] | None:
    """A record's tools: a list, or the JSON of a list, as in TRL."""
    tools = record.get("tools") or None
    try:
        tools = json.loads(tools) if isinstance(tools, str) else tools
    except ValueError:
        raise Fault("'tools' is text, but not JSON") from None
    if tools is not None and not (
        isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)
    ):
        raise Fault(f"'tools' is {json_type(tools)}; expected a list of objects, or its JSON")
    return tools or None


def _contains(text: str, parts: Sequence[Any]) -> bool:
    """Whether a text contains all these parts, ignoring spaces and line ends."""
    bare = _bare(text)
    return all(_bare(part) in bare for part in parts if isinstance(part, str))


def _bare(text: str) -> str:
    return "".join(text.split())


def _check(write: Write, chat: list[Message], checked: Sequence[Message], text: str) -> None:
    """Raise a Fault if a template left out content of the checked messages, or wrote "None"."""

    def changed(message: Message, **fields: Any) -> str | None:
        """The text with other fields in a message; None if the template fails."""
        return _or_none(
            lambda: write([{**one, **fields} if one is message else one for one in chat])
        )

    bare = _bare(text)
    for message in checked:
        content = message.get("content", "")
        if content is None:
            blank = changed(message, content="")
            if blank is not None and text.count("None") > blank.count("None"):
                raise Fault("the chat template writes 'None' for a null content; use '' instead")
        elif _bare(content) not in bare and text == changed(message, content=""):
            role = word(message["role"], 20)
            raise Fault(f"the chat template leaves out a message of {role!r}")
        if message.get("tool_calls") and text == changed(message, tool_calls=[]):
            raise Fault("the chat template leaves out the tool calls")


def _or_none(write: Callable[[], str]) -> str | None:
    try:
        return write()
    except Fault:
        return None
