"""Texts and chats as token ids for a scorer.

A text is tokenised once, without adding special tokens. A chat is rendered by the tokenizer's own
template: the prompt up to the opening of the answer, the completion after it. A completion in the
form of text is complete, so EOS is added unless the template already wrote it; tokens after the
first EOS are not part of the answer and are cut.
"""

from typing import Any

from trimtab_models.data import chats
from trimtab_models.data.faults import Fault, Record, field, word


def cut(completion: list[int], eos: int | None) -> list[int]:
    """A completion up to and including its first EOS."""
    return completion[: completion.index(eos) + 1] if eos in completion else completion


def vocabulary(tokenizer: Any) -> int:
    """The number of token ids."""
    return int(max(tokenizer.get_vocab().values())) + 1


def stored_ids(record: Record, name: str, vocabulary: int) -> list[int] | None:
    """The token ids that a record contains for a field; None if there are none.

    Raises:
        Fault: they are not whole numbers from 0 to `vocabulary` − 1.
    """
    name = f"{name}_token_ids"
    if (ids := record.get(name)) is None:
        return None
    if not isinstance(ids, list) or not all(type(token) is int for token in ids):
        raise Fault(f"{name!r} is not a list of whole numbers")
    for token in ids:
        if not 0 <= token < vocabulary:
            raise Fault(f"{name!r} has {word(token)}, but the ids end at {vocabulary - 1}")
    return ids


class Encoder:
    """Encodes the fields of records with a tokenizer.

    aspect: of spans of rollouts, those of this aspect alone are read; see `steps`.

    Raises:
        ValueError: the tokenizer has no EOS.
    """

    def __init__(self, tokenizer: Any, aspect: str | None = None) -> None:
        if tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no EOS token, so no completion can end; set one.")
        self.tokenizer = tokenizer
        self.eos: int = tokenizer.eos_token_id
        self.vocabulary = vocabulary(tokenizer)
        self.aspect = aspect
        self.aspects: set[str] = set()  # that the rollouts so far have

    def prompt(self, record: Record) -> list[int]:
        """A record's prompt; a chat includes the opening of the answer."""
        ids = self.stored_ids(record, "prompt")
        if ids is None:
            value = field(record, "prompt")
            text = value if isinstance(value, str) else chats.opening(self.tokenizer, record)
            ids = self.ids(text, "prompt")
        if not ids:
            raise Fault("'prompt' is empty")
        return ids

    def completion(self, record: Record, name: str) -> list[int]:
        """The completion in a field; encoded from text or a message it ends with EOS."""
        ids = self.stored_ids(record, name)
        if ids is None:
            value = field(record, name)
            text = value if isinstance(value, str) else chats.answer(self.tokenizer, record, name)
            if not text:
                raise Fault(f"{name!r} is empty")
            return self.finish(self.ids(text, name))
        if not ids:
            raise Fault(f"'{name}_token_ids' is empty")
        return cut(ids, self.eos)

    def finish(self, ids: list[int]) -> list[int]:
        """The ids of a complete answer: cut after the first EOS, which is added if missing."""
        return cut([*ids, self.eos], self.eos)

    def ids(self, text: str, name: str) -> list[int]:
        """A text's ids, without added special tokens."""
        try:
            text.encode()
        except UnicodeEncodeError:
            raise Fault(f"{name!r} has half a surrogate pair, which is not a character") from None
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def stored_ids(self, record: Record, name: str) -> list[int] | None:
        """The ids that a record contains for a field, or None."""
        return stored_ids(record, name, self.vocabulary)
