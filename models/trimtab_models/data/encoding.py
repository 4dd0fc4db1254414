"""Texts and chats as the token ids that a scorer reads.

A text is tokenised once, without adding special tokens. A chat is rendered by the tokenizer's own
template: the prompt up to the opening of the answer, the completion as what the template writes
after that. A completion that is given as text is complete, so EOS follows, unless its template has
written it already; what stands after the first EOS is not the model's answer and is left off.
"""

from typing import Any

from jinja2 import TemplateError

from trimtab_models.data.faults import Fault, Record, field, kind, word

Message = dict[str, Any]


def cut(completion: list[int], eos: int | None) -> list[int]:
    """A completion up to and with its first EOS; what follows is not the model's answer."""
    return completion[: completion.index(eos) + 1] if eos in completion else completion


class Encoder:
    """A tokenizer as training data needs it.

    Raises:
        ValueError: the tokenizer has no EOS.
    """

    def __init__(self, tokenizer: Any) -> None:
        if tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no EOS token, so no completion can end; set one.")
        self.tokenizer = tokenizer
        self.eos: int = tokenizer.eos_token_id
        self.vocabulary = max(tokenizer.get_vocab().values()) + 1

    def prompt(self, record: Record) -> list[int]:
        """A record's prompt; a chat with the opening of the answer."""
        ids = self.given(record, "prompt")
        if ids is None:
            value = field(record, "prompt")
            text = value if isinstance(value, str) else self._opening(record)
            ids = self.ids(text, "prompt")
        if not ids:
            raise Fault("'prompt' is empty")
        return ids

    def completion(self, record: Record, name: str) -> list[int]:
        """The completion under a name; given as text or as a message it ends with EOS."""
        ids = self.given(record, name)
        if ids is None:
            value = field(record, name)
            text = value if isinstance(value, str) else self._answer(record, name)
            if not text:
                raise Fault(f"{name!r} is empty")
            return self.finish(self.ids(text, name))
        if not ids:
            raise Fault(f"'{name}_token_ids' is empty")
        return cut(ids, self.eos)

    def finish(self, ids: list[int]) -> list[int]:
        """The ids of a complete answer: they end with the first EOS, which follows if missing."""
        return cut([*ids, self.eos], self.eos)

    def ids(self, text: str, name: str) -> list[int]:
        """A text's ids, no special token added."""
        try:
            text.encode()
        except UnicodeEncodeError:
            raise Fault(f"{name!r} holds half a surrogate pair, which is no character") from None
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def given(self, record: Record, name: str) -> list[int] | None:
        """The ids beside a field, or None."""
        name = f"{name}_token_ids"
        if (ids := record.get(name)) is None:
            return None
        if not isinstance(ids, list) or not all(type(token) is int for token in ids):
            raise Fault(f"{name!r} is not a list of whole numbers")
        for token in ids:
            if not 0 <= token < self.vocabulary:
                raise Fault(f"{name!r} has {word(token)}, but the ids end at {self.vocabulary - 1}")
        return ids

    def _opening(self, record: Record) -> str:
        return self._render(record, messages(record, "prompt"), add_generation_prompt=True)

    def _answer(self, record: Record, name: str) -> str:
        answer = messages(record, name)
        if not isinstance(field(record, "prompt"), list):
            raise Fault(f"{name!r} is a list of messages, so 'prompt' must be one too")
        if len(answer) != 1:
            raise Fault(f"{name!r} has {len(answer)} messages; a scorer reads one answer")
        if not answer[0]["content"]:
            raise Fault(f"{name!r} is empty")
        opening = self._opening(record)
        whole = self._render(record, messages(record, "prompt") + answer)
        if not whole.startswith(opening):
            raise Fault(
                f"the chat template writes the prompt otherwise once {name!r} follows, so the "
                "answer cannot be told from the prompt; give both as text, or mend the template"
            )
        return whole[len(opening) :]

    def _render(self, record: Record, chat: list[Message], **options: Any) -> str:
        if self.tokenizer.chat_template is None:
            raise Fault("there are chat messages, but the tokenizer has no chat template")
        try:
            text = self.tokenizer.apply_chat_template(
                chat, tools=record.get("tools"), tokenize=False, **options
            )
        except (TemplateError, ValueError, TypeError, KeyError) as error:
            raise Fault(f"the chat template refuses the messages ({word(error)})") from None
        return str(text)


def messages(record: Record, name: str) -> list[Message]:
    """A field's chat messages; what is null in them (as `datasets` fills up) is left out."""
    value = field(record, name)
    if not isinstance(value, list):
        raise Fault(f"{name!r} is {kind(value)}; expected text or a list of messages")
    if not value:
        raise Fault(f"{name!r} is empty")
    for message in value:
        if not isinstance(message, dict) or not all(
            isinstance(message.get(key), str) for key in ("role", "content")
        ):
            raise Fault(f"{name!r} has a message without the texts 'role' and 'content'")
    return [{key: part for key, part in message.items() if part is not None} for message in value]
