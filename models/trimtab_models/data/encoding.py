"""Texts and chats as the token ids that a scorer reads.

A text is tokenised once, without adding special tokens. A chat is rendered by the tokenizer's own
template: the prompt up to the opening of the answer, the completion as what the template writes
after that. A completion that is given as text is complete, so EOS follows, unless its template has
written it already; what stands after the first EOS is not the model's answer and is left off.
"""

from typing import Any

from trimtab_models.data import chats
from trimtab_models.data.faults import Fault, Record, field, word


def cut(completion: list[int], eos: int | None) -> list[int]:
    """A completion up to and with its first EOS; what follows is not the model's answer."""
    return completion[: completion.index(eos) + 1] if eos in completion else completion


def vocabulary(tokenizer: Any) -> int:
    """How many token ids there are."""
    return int(max(tokenizer.get_vocab().values())) + 1


def given(record: Record, name: str, vocabulary: int) -> list[int] | None:
    """The token ids beside a field of a record, or None.

    Raises:
        Fault: they are not whole numbers from 0 to below `vocabulary`.
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
    """A tokenizer as training data needs it.

    Raises:
        ValueError: the tokenizer has no EOS.
    """

    def __init__(self, tokenizer: Any) -> None:
        if tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no EOS token, so no completion can end; set one.")
        self.tokenizer = tokenizer
        self.eos: int = tokenizer.eos_token_id
        self.vocabulary = vocabulary(tokenizer)

    def prompt(self, record: Record) -> list[int]:
        """A record's prompt; a chat with the opening of the answer."""
        ids = self.given(record, "prompt")
        if ids is None:
            value = field(record, "prompt")
            text = value if isinstance(value, str) else chats.opening(self.tokenizer, record)
            ids = self.ids(text, "prompt")
        if not ids:
            raise Fault("'prompt' is empty")
        return ids

    def completion(self, record: Record, name: str) -> list[int]:
        """The completion under a name; given as text or as a message it ends with EOS."""
        ids = self.given(record, name)
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
        return given(record, name, self.vocabulary)
